"""Who may use the server and how often, and the audit log of it."""
