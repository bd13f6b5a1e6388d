"""OpenAI's chat completions on the server: pictures and clips are embeddings or hashes of stored embeddings."""
