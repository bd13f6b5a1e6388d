"""A graph in true float16: every product and cast of it rounds, which ONNX Runtime's CPU does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator


def run_true_float16(path: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs of a graph in ONNX's reference evaluator (numpy)."""
    with np.errstate(all="ignore"):
        outputs: list[NDArray[Any]] = ReferenceEvaluator(onnx.load(str(path))).run(None, feeds)  # type: ignore[assignment]
    return outputs
