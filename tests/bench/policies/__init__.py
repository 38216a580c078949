"""`make bench-policies`: every policy on the same arrivals, in simulation (docs/benchmarks/policies.md)."""
