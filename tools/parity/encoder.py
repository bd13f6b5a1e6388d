"""Encoder parity: every graph of a bundle compared with the PyTorch encoder in fp32, on the same pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, EncoderBackend, run_encoder
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.output_error import OutputError, output_error
from qwen3vl_edge.tools.parity.samples import UINT8, Case, Sample, graph_label, takes_pixels

WORST_PER_GRAPH = 3  # pictures whose pixels stay in memory, for the page
Place = tuple[Grid, str]  # a grid and the kind of its graph


@dataclass(frozen=True)
class Bound:
    """What one output of a bucket may differ from the reference.

    Attributes:
        min_cosine: the least that passes.
        max_relative_l2: the most that passes; a cosine does not see one row of a weight that is a third too large.
    """

    min_cosine: float = -1.0
    max_relative_l2: float = float("inf")


@dataclass(frozen=True)
class EncoderRow:
    """One output of one graph, worst over the pictures.

    Attributes:
        bucket, graph: its grid, and its kind.
        worst_token: largest L2 of a token's error, relative to the reference tokens' norms.
    """

    bucket: str
    graph: str
    output: str
    pictures: int
    distance: Distance
    bound: Bound
    worst_token: float = float("nan")

    @property
    def key(self) -> tuple[str, str, str]:
        return self.bucket, self.graph, self.output

    @property
    def label(self) -> str:
        """The graph as tables name it."""
        return graph_label(self.bucket, self.graph)

    @property
    def passed(self) -> bool:
        return not self.excess

    @property
    def excess(self) -> str:
        """Which limit is exceeded, "" if none is; NaN exceeds both."""
        if not self.distance.cosine >= self.bound.min_cosine:
            return f"below {self.bound.min_cosine:g}"
        return (
            "" if self.distance.relative_l2 <= self.bound.max_relative_l2 else f"above {self.bound.max_relative_l2:g}"
        )


@dataclass(frozen=True)
class Measurement:
    """One picture at one graph.

    Attributes:
        candidate: per output, the candidate against PyTorch.
        against: the other side against PyTorch, None where there is none or it does not serve the grid.
        between: the candidate against the other side.
    """

    grid: Grid
    graph: str
    picture: str
    candidate: dict[str, OutputError]
    against: dict[str, OutputError] | None = None
    between: dict[str, Distance] | None = None

    @property
    def label(self) -> str:
        """Its graph as tables name it."""
        return graph_label(self.grid, self.graph)

    @property
    def badness(self) -> float:
        """Largest token error of any output; NaN counts as infinite."""
        worst = max((error.worst_token for error in self.candidate.values()), key=lambda value: (value != value, value))
        return float("inf") if worst != worst else worst


@dataclass(frozen=True)
class Measured:
    """A whole run.

    Attributes:
        worst: per graph the pictures that came out worst, worst first.
        embeddings: per grid those of its first picture.
    """

    measurements: tuple[Measurement, ...]
    worst: dict[Place, tuple[tuple[Measurement, Case], ...]]
    embeddings: dict[Grid, Embeddings]


def bound_of(precision: str, backend: str) -> Bound:
    """The default one of a precision on a backend."""
    limits = limits_of(precision, backend)
    return Bound(limits.min_cosine, limits.max_relative_l2)


def measure(
    samples: Iterable[Sample], names: Sequence[str], reference: EncoderBackend, against: EncoderBackend | None = None
) -> Measured:
    """Compare each sample, and the embeddings that `against` computes from the same pixels, with the reference.

    Args:
        samples: from a backend or from a device's dump.
        names: of the outputs, in order.
    """
    measurements: list[Measurement] = []
    worst: dict[Place, list[tuple[Measurement, Case]]] = {}
    first: dict[Grid, Embeddings] = {}
    for sample in samples:
        measurement = _measure(sample, names, reference, against)
        measurements.append(measurement)
        first.setdefault(sample.case.grid, sample.embeddings)
        pairs = worst.setdefault(sample.case.place, [])
        pairs.append((measurement, sample.case))
        pairs.sort(key=lambda pair: -pair[0].badness)
        del pairs[WORST_PER_GRAPH:]
    return Measured(tuple(measurements), {place: tuple(pairs) for place, pairs in worst.items()}, first)


def _measure(
    sample: Sample, names: Sequence[str], reference: EncoderBackend, against: EncoderBackend | None
) -> Measurement:
    case = sample.case
    expected = named_outputs(names, reference.run(case.grid, case.input.pixel_values))
    candidate = named_outputs(names, sample.embeddings)
    errors = {name: output_error(candidate[name], expected[name]) for name in names}
    if against is None or not (case.grid in against.serves.buckets or against.serves.dynamic):
        return Measurement(case.grid, case.graph, case.picture, errors)
    if case.graph == UINT8 and takes_pixels(against, case.grid):
        other = named_outputs(names, run_encoder(against, case.input))
    else:
        other = named_outputs(names, against.run(case.grid, case.input.pixel_values))
    return Measurement(
        case.grid,
        case.graph,
        case.picture,
        errors,
        {name: output_error(other[name], expected[name]) for name in names},
        {name: distance(candidate[name], other[name]) for name in names},
    )


def named_outputs(names: Sequence[str], embeddings: Embeddings) -> dict[str, Any]:
    """The encoder's outputs, [n, D] each, by the names that the manifest gives them."""
    return dict(zip(names, (embeddings.embeds, *embeddings.deepstack), strict=True))


def encoder_rows(
    measurements: Sequence[Measurement], bound: Bound | dict[str, Bound], *, against: bool = False
) -> list[EncoderRow]:
    """Worst over the pictures per graph and output, in the order measured.

    Args:
        bound: of all outputs, or one per output.
        against: rows of the other side, without the grids that it does not serve.
    """
    rows: dict[tuple[str, str, str], EncoderRow] = {}
    for item in measurements:
        for name, error in ((item.against if against else item.candidate) or {}).items():
            own = bound[name] if isinstance(bound, dict) else bound
            row = EncoderRow(str(item.grid), item.graph, name, 1, error.distance, own, error.worst_token)
            rows[row.key] = _worse(rows[row.key], row) if row.key in rows else row
    return list(rows.values())


def _worse(one: EncoderRow, other: EncoderRow) -> EncoderRow:
    token = max(one.worst_token, other.worst_token, key=lambda value: (value != value, value))
    apart = one.distance.worst(other.distance)
    return EncoderRow(one.bucket, one.graph, one.output, one.pictures + other.pictures, apart, one.bound, token)
