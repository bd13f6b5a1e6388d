"""The first layer at which two implementations of the encoder differ by more than a tolerance.

One run compares the residual stream and the output of each branch; the first that differs gives a module, and
a second run compares everything inside that module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.parity.layers.names import LayerSource, branch_layers, layers_within, module_of
from qwen3vl_edge.tools.parity.samples import Case, graph_label


@dataclass(frozen=True)
class LayerGap:
    """The difference of two sides at one layer.

    Attributes:
        relative_l2: ‖a - b‖ / ‖b‖, b the second side.
        row, channel: where the largest difference is; a single channel points at a weight or a bias.
    """

    layer: str
    relative_l2: float
    cosine: float
    max_abs: float
    row: int
    channel: int


@dataclass(frozen=True)
class Bisection:
    """The result for one picture at one graph.

    Attributes:
        precision: of the set that was searched.
        bucket, graph: the grid, and the kind of the graph.
        first: the first layer beyond the tolerance, None if all are within.
        before: the layer before it, which is still within; None if there is none.
        gaps: all layers compared, in the order that they are computed.
    """

    precision: str
    bucket: str
    graph: str
    picture: str
    tolerance: float
    first: LayerGap | None
    before: LayerGap | None
    gaps: tuple[LayerGap, ...]

    @property
    def label(self) -> str:
        """The graph as tables name it."""
        return graph_label(self.bucket, self.graph)


def bisect(
    precision: str,
    cases: Iterable[Case],
    vision: VisionSpec,
    one: LayerSource,
    other: LayerSource,
    tolerance: float,
    progress: Callable[[str], None] = lambda case: None,
) -> list[Bisection]:
    """Search each case.

    Args:
        precision: of side `one`.

    Raises:
        InputError: the sides have no layer in common.
    """
    bisections = []
    for case in cases:
        progress(f"{case.picture} at {case.label}")
        bisections.append(_bisect(precision, case, vision, one, other, tolerance))
    return bisections


def earliest(bisections: Sequence[Bisection], vision: VisionSpec) -> Bisection | None:
    """The case whose first layer comes first in the encoder; None if no case differs."""
    modules = list(dict.fromkeys(module_of(name) for name in branch_layers(vision)))
    order = {name: index for index, name in enumerate(name for module in modules for name in layers_within(module))}
    different = [(order[item.first.layer], index) for index, item in enumerate(bisections) if item.first is not None]
    return bisections[min(different)[1]] if different else None


def _bisect(
    precision: str, case: Case, vision: VisionSpec, one: LayerSource, other: LayerSource, tolerance: float
) -> Bisection:
    coarse = _gaps(case, _common(branch_layers(vision), one, other), one, other)
    if not coarse:
        raise InputError(
            f"{one.label} and {other.label} show no layer in common",
            field="--bisect",
            remedy="Use ONNX Runtime or PyTorch, or a dump made with --layers.",
        )
    gaps = {gap.layer: gap for gap in coarse}
    found = Bisection(precision, str(case.grid), case.graph, case.picture, tolerance, None, None, tuple(coarse))
    suspect = next((gap for gap in coarse if not gap.relative_l2 <= tolerance), None)
    if suspect is None:
        return found
    module = module_of(suspect.layer)
    inner = _common(layers_within(module), one, other)
    gaps |= {gap.layer: gap for gap in _gaps(case, inner, one, other)}
    ordered = _with_inner([gap.layer for gap in coarse], module, inner)
    first = next(index for index, name in enumerate(ordered) if not gaps[name].relative_l2 <= tolerance)
    return replace(
        found,
        first=gaps[ordered[first]],
        before=gaps[ordered[first - 1]] if first else None,
        gaps=tuple(gaps[name] for name in ordered),
    )


def _with_inner(coarse: list[str], module: str, inner: list[str]) -> list[str]:
    """The coarse layers with one module's replaced by all of its layers."""
    start = next(index for index, name in enumerate(coarse) if module_of(name) == module)
    before = coarse[:start]
    return [*before, *inner, *(name for name in coarse[start:] if module_of(name) != module)]


def _common(names: Sequence[str], one: LayerSource, other: LayerSource) -> list[str]:
    return [name for name in names if one.offers(name) and other.offers(name)]


def _gaps(case: Case, names: list[str], one: LayerSource, other: LayerSource) -> list[LayerGap]:
    if not names:
        return []
    first_layers, second_layers = one.run(case, names), other.run(case, names)
    return [_gap(name, first_layers[name], second_layers[name]) for name in names]


def _gap(layer: str, actual: NDArray[Any], reference: NDArray[Any]) -> LayerGap:
    apart = distance(actual, reference)
    width = actual.shape[-1]
    difference = np.abs(actual.astype(np.float64) - reference.astype(np.float64)).reshape(-1, width)
    place = int(np.where(np.isnan(difference), np.inf, difference).argmax())
    return LayerGap(layer, apart.relative_l2, apart.cosine, apart.max_abs, place // width, place % width)
