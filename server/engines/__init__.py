"""What generates: one protocol, one folder per engine. Knows nothing of HTTP."""
