"""One file per encoder backend; each has a `load(...) -> EncoderBackend`."""
