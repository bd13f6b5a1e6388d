"""Command line, parity, demo, benches and the training of the reference checkpoint."""
