"""Embeddings that the server keeps by hash, in memory and on disk."""
