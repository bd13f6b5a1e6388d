"""Access control, rate limits and the audit log."""
