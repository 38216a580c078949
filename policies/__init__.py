"""Placement policies: pure decisions over a read-only view of the fleet."""
