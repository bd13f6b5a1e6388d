"""The transformers engine: sampling, batching, KV cache, prefill."""
