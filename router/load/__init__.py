"""The load generator: offers requests in open loop, checks every token, reports what it saw."""
