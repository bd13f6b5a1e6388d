"""Error and size of the encoder's layers, one picture per bucket: where drift begins, and outlier channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import Distance, distance
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.tools.parity.layers.names import LayerSource, stream_layers
from qwen3vl_edge.tools.parity.samples import Case, graph_label


@dataclass(frozen=True)
class Activation:
    """Magnitudes of a layer's output, [rows, channels], in the reference.

    Attributes:
        p999: |value| that one in a thousand exceeds.
        channel: index of the channel with the largest |value|.
        channel_peak: that |value| over the median channel's largest; quantization suffers where it is high.
    """

    rms: float
    p999: float
    largest: float
    channel: int
    channel_peak: float


@dataclass(frozen=True)
class LayerRow:
    """One layer for one picture.

    Attributes:
        bucket, graph: the grid, and the kind of the graph.
        candidate: against the reference.
        against: the other side against the reference, None without one.
    """

    bucket: str
    graph: str
    picture: str
    layer: str
    candidate: Distance
    against: Distance | None
    activation: Activation

    @property
    def label(self) -> str:
        """The graph as tables name it."""
        return graph_label(self.bucket, self.graph)


def measure_layers(
    cases: Sequence[Case],
    vision: VisionSpec,
    candidate: LayerSource,
    reference: LayerSource,
    against: LayerSource | None = None,
    progress: Callable[[str], None] = lambda bucket: None,
) -> list[LayerRow]:
    """The residual stream and the mergers of each case, in the order that they are computed."""
    sources = [source for source in (candidate, reference, against) if source is not None]
    names = [name for name in stream_layers(vision) if all(source.offers(name) for source in sources)]
    rows = []
    for case in cases:
        progress(case.label)
        outputs, expected = candidate.run(case, names), reference.run(case, names)
        serves = against is not None and against.serves(case)
        other = against.run(case, names) if against is not None and serves else None
        rows += [
            LayerRow(
                str(case.grid),
                case.graph,
                case.picture,
                name,
                distance(outputs[name], expected[name]),
                None if other is None else distance(other[name], expected[name]),
                activation(expected[name]),
            )
            for name in names
        ]
    return rows


def activation(values: NDArray[Any]) -> Activation:
    """Sizes of [rows, channels]."""
    absolute = np.abs(values.astype(np.float64))
    channels = absolute.max(axis=0)
    channel = int(channels.argmax())
    return Activation(
        float(np.sqrt((absolute**2).mean())),
        float(np.quantile(absolute, 0.999)),
        float(channels[channel]),
        channel,
        float(channels[channel] / max(float(np.median(channels)), 1e-30)),
    )


def first_drift(rows: Sequence[LayerRow], tolerance: float) -> LayerRow | None:
    """The earliest layer of any bucket whose relative L2 exceeds the tolerance; NaN exceeds every tolerance."""
    order = {name: index for index, name in enumerate(dict.fromkeys(row.layer for row in rows))}
    over = [row for row in rows if not row.candidate.relative_l2 <= tolerance]
    return min(over, key=lambda row: order[row.layer], default=None)
