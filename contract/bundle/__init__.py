"""The bundle: one folder of graphs, weights, manifest and engines, and the grids it serves."""
