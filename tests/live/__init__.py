"""Tests of the northbound half of the live shell."""
