"""The vision encoder of a checkpoint as ONNX: one graph per bucket, one weights file, checked against PyTorch."""
