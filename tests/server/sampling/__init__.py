"""Sampling: the batch against each row alone, and the doors of its parameters."""
