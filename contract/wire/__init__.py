"""The wire format: encode and decode a generation request with its embeddings."""
