"""The mock in real time against the same engine in virtual time."""
