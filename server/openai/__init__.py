"""OpenAI's chat completions on the server: pictures and clips come as embeddings, by hash, or not at all."""
