"""Policies from outside: unit tests as text, lint, diff, and search over their parameters."""
