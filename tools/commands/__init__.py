"""What each CLI command does; imported by `tools.cli` only when the command runs."""
