"""The server: the language model without the vision encoder, embeddings in, answers out.

`server/engines` imports no web framework, and `server/app.py` no tensor library. Importing this package, or
`server/main.py` and `server/options.py`, loads neither torch nor a web framework.
"""
