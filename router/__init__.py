"""Polyphase, a heterogeneous inference router. Importing this package imports nothing else."""
