"""The wire: a generation request with its embeddings as bytes, both ways."""
