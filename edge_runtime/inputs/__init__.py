"""Messages, pictures and clips to token ids and patches."""
