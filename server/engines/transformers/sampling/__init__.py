"""Choosing the next tokens of a batch on the device."""
