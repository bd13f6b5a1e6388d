"""vLLM behind the engine protocol, in this process: for models on several GPUs or machines.

Imported only if this engine is selected: it needs an environment with vLLM, which pins its own torch.
"""
