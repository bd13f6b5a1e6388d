"""The Python API of each TensorRT version that is supported, taken from its own bindings."""
