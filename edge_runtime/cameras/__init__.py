"""Cameras: frames from a live source, a sliding window of temporal patches, each encoded once."""
