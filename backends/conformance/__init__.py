"""The worker contract as checks over the wire: speaks WorkerService as a router would, to any worker.

It knows the protocol and the nouns, and nothing of how a worker is built (docs/guides/write-a-backend.md).
"""
