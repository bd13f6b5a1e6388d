"""What runs on the device for months: a local OpenAI-compatible API in front of the encoder."""
