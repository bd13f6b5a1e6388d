"""A generation from admission to its last event, for the routes of both HTTP APIs."""
