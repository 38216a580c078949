"""Reads facts and actions: metrics, records, replay."""
