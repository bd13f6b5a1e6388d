"""The KV cache: of requests under way, and of ended ones whose prefix may come again."""
