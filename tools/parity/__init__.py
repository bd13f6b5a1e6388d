"""The split held against the unsplit model in fp32: embeddings, tokens and logits."""
