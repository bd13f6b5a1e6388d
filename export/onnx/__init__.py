"""The encoder as ONNX graphs with one weights file, checked against PyTorch."""
