"""Virtual time: the same core, policies and engines on a heap."""
