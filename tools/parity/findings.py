"""The results of one run, as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.tools.parity.encoder import Measured
from qwen3vl_edge.tools.parity.gate import Gate
from qwen3vl_edge.tools.parity.layers.drift import LayerRow
from qwen3vl_edge.tools.parity.report import ParityReport


@dataclass(frozen=True)
class LayerFindings:
    """The encoder's layers.

    Attributes:
        label: of the backend that computed them; for one without outputs for them (a TensorRT plan), its graph on ONNX
            Runtime.
        tolerance: relative L2 beyond which a layer counts as drifted.
    """

    label: str
    tolerance: float
    rows: tuple[LayerRow, ...]


@dataclass(frozen=True)
class Findings:
    """One run.

    Attributes:
        candidate: its label; `against` of the other side, None without one.
        layers: None where they were not measured.
        facts: hashes and versions by heading, in the order to be shown.
    """

    report: ParityReport
    gate: Gate
    measured: Measured
    layers: LayerFindings | None
    candidate: str
    against: str | None
    vision: VisionSpec
    preprocessing: Preprocessing
    facts: dict[str, dict[str, Any]]
