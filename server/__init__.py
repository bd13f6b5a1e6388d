"""The server's half: the language model alone, embeddings in, answers out.

`server.engine` knows nothing of HTTP and `server/app.py` nothing of tensors. Importing this package, or
`server/main.py` and `server/options.py`, loads neither torch nor a web framework.
"""
