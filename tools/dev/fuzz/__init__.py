"""Mutated requests against the real server: none may crash it, fill its memory, or be answered with a 5xx."""
