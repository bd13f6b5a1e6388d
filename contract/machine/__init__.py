"""Facts of this machine: its GPU, CPU threads and TensorRT library, and the environment of a measurement."""
