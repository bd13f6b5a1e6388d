"""What was measured of a bundle's sets, as the manifest records it: parity, headroom, calibration, the wire's basis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputParity:
    """One graph output against the PyTorch encoder in fp32, worst over the checked pictures.

    A quantized graph is compared with the bundle's own fp32 (or fp16) graph, which was compared with PyTorch.
    """

    output: str
    cosine: float
    max_abs: float
    relative_l2: float


@dataclass(frozen=True)
class LayerHeadroom:
    """How near a layer of a set with float16 comes to float16's largest value, 65,504.

    Attributes:
        layer: a linear, such as "blocks.3.mlp.linear_fc1", or a block's attention between its linears, "….attn.scores".
        largest: a bound of what its tensors hold, over the pictures that the set was checked with.
        headroom: 65,504 / largest.
        precision: "fp16", or "fp32" where there was too little of it (`export/onnx/headroom.py`).
    """

    layer: str
    largest: float
    headroom: float
    precision: str


@dataclass(frozen=True)
class CalibrationFigure:
    """What quantization costs on some pictures: worst over them and the outputs, to the set that was quantized.

    Attributes:
        pictures: "calibration", of which the ranges were taken; "held-out", others of the data; "drawn", one for
            each bucket and two for the dynamic graph; "other kinds", textures. In older bundles the drawn ones are
            among the held-out, and there are no other kinds.
        count: pictures and clips.
    """

    pictures: str
    count: int
    cosine: float
    relative_l2: float


@dataclass(frozen=True)
class CalibrationRecord:
    """How a quantized set was calibrated.

    Attributes:
        key: sha256 of all inputs of the calibration.
        base: the set that was quantized.
        samples: pictures and clips observed; per_bucket counts them by grid.
        smooth: SmoothQuant's alpha, None without SmoothQuant.
        quantized: products in int8 or float8, linears and attention scores; excluded: those that stay in the set's
            other precision.
        sensitivity: file with each product's effect, None if it was not measured.
        figures: on each of these kinds of pictures; none in older bundles.
    """

    key: str
    base: str
    method: str
    samples: int
    per_bucket: dict[str, int]
    smooth: float | None
    quantized: tuple[str, ...]
    excluded: tuple[str, ...]
    sensitivity: str | None = None
    figures: tuple[CalibrationFigure, ...] = ()


@dataclass(frozen=True)
class BasisRecord:
    """A basis for embeddings on the wire, and how it was fitted.

    Attributes:
        path: its file; the file's sha256 is the basis's name on the wire.
        precision: the set whose embeddings it was fitted to.
        samples: number of pictures and clips.
        rows, held_out_rows: embedding rows used for the fit, and held out for evaluation.
        ranks: number of directions of each tensor: the embeddings, then each DeepStack level.
        mean_cosines, least_cosines: cosine of each tensor's held-out rows with their projection on its directions.
    """

    path: str
    precision: str
    samples: int
    rows: int
    held_out_rows: int
    ranks: tuple[int, ...]
    mean_cosines: tuple[float, ...]
    least_cosines: tuple[float, ...]
