"""Fits the models of backends/models to measurements, and says how far they are off.

Needs the packages of the `calibrate` extra; nothing else in the project imports it.
"""
