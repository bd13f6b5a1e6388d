"""Measurements that are written down: each command prints JSON with machine and versions; tests time nothing."""
