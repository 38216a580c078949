"""Tests of the device catalogue, model shapes and the roofline prior; numbers are worked by hand."""
