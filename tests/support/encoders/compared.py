"""An edge's encoder beside a reference, by the parts that parity is made of."""

from __future__ import annotations

from typing import Any

from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend
from qwen3vl_edge.tools.parity.encoder import EncoderRow, bound_of, encoder_rows, measure
from qwen3vl_edge.tools.parity.samples import edge_cases, run_cases


def compare_encoders(edge: Edge, reference: EncoderBackend, pictures: dict[str, Any]) -> list[EncoderRow]:
    """Run the edge's encoder and the reference on every picture at every graph (`edge_cases`)."""
    names = edge.bundle.manifest.vision.output_names
    measured = measure(run_cases(edge, edge_cases(edge, pictures)), names, reference)
    return encoder_rows(measured.measurements, bound_of(edge.encoder.precision, edge.encoder.name))
