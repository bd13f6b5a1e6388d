"""The device's half: messages in, the encoder run, embeddings sent, the answer streamed back."""
