"""The GPU kit: one command that tests and measures everything which needs a GPU, on any machine that has one."""
