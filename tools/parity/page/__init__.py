"""The HTML page of a parity run."""
