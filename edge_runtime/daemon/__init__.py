"""The device's long-running service: a local OpenAI-compatible API in front of the encoder."""
