"""The encoder written straight in PyTorch: what it computes, how it is captured, where its compiled code is kept."""
