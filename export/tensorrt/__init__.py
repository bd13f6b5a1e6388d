"""TensorRT and TensorRT-RTX engines from the bundle's graphs."""
