"""The daemon's HTTP routes, one file per group."""
