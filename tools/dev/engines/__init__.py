"""Random small towers on every backend of this machine's CPU, against PyTorch."""
