"""The encoder bench: ours against every peer that this machine can run."""
