"""Pure models of hardware: step latency, KV links, power, and the batch engine that runs on them."""
