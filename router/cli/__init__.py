"""Composition root: one small file a command."""
