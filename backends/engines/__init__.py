"""Adapters to engines with a protocol of their own: what a worker would do runs in the router's process."""
