"""What export, edge_runtime and server agree on: buckets, bundle manifest, wire format, errors.

Imports neither torch nor transformers, and none of the other parts.
"""
