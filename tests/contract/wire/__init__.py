"""The request between device and server."""
