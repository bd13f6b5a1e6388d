"""A generation from admission to the last event, whichever route asked for it."""
