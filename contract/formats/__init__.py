"""Files and documents: how they are written whole, parsed strictly, and laid out in bytes."""
