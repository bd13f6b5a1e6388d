"""What the CUDA provider of ONNX Runtime loads in the place of a bundle's graphs, and how it runs them."""
