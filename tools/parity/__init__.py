"""The split compared with the unsplit model in fp32: embeddings, tokens and logits."""
