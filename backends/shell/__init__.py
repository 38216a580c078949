"""The shell around a pure worker: gRPC, the clock, KV pulls, registration. It has all of a worker's I/O."""
