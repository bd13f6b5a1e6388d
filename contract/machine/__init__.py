"""What this machine is: its GPU, its CPU threads, its TensorRT library, and what to write beside a figure."""
