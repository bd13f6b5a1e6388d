"""The encoder layer by layer: where two implementations differ."""
