"""Qwen3-VL on two machines: the vision encoder on the device, the language model on a server."""
