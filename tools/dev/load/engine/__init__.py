"""The server's engine against what its model can do: `generate`, a captured step by hand, vLLM, and the floor."""
