"""The asyncio and gRPC shell around the core."""
