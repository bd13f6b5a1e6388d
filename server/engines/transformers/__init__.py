"""transformers' own model on one machine, with continuous batching of decode steps."""
