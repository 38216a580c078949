"""Real engines behind a real daemon: `make test-engines`. Not part of `make test`; see docs/engines.md."""
