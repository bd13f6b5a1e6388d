"""What server and daemon share of HTTP: bodies, errors, TLS, listening, tracing, OpenAI's objects."""
