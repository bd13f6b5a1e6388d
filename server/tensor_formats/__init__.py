"""Tensors as clients send them: safetensors, torch.save, NumPy."""
