"""The vision encoder as the device uses it: the backend protocol, batching of runs, the embedding cache."""
