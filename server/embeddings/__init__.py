"""The store of embeddings by hash, in memory and on disk."""
