"""The reference worker: real prefill, real KV handoff and real decode in PyTorch, behind the mock's shell.

It is the executable form of the worker contract, and serves small models for real.
"""
