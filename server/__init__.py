"""The server's half: the language model alone, embeddings in, answers out.

`server.engine` knows nothing of HTTP and `server.app` nothing of tensors. Importing this package, or
`server.main` and `server.options`, loads neither torch nor a web framework.
"""
