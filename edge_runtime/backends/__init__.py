"""One file per way to run the encoder; each offers `load(...) -> Engine`."""
