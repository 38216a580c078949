"""Workers: pure models of hardware, the mock worker server, and adapters to real engines."""
