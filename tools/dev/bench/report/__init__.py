"""The benchmarks page, generated from what the benches wrote."""
