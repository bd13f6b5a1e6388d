"""`parity --bisect`: the first layer at which both sides part, in every graph of every set that is compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.parity.candidate import Candidate, edge_candidate
from qwen3vl_edge.tools.parity.layers.bisect import Bisection, bisect, earliest
from qwen3vl_edge.tools.parity.layers.sources import layers_of, no_layers
from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import pictures_of
from qwen3vl_edge.tools.parity.run import ParityRequest, as_chosen, open_against, open_candidate, open_reference
from qwen3vl_edge.tools.parity.sets import Skipped, opened_set, other_precisions

Progress = Callable[[str], None]


@dataclass(frozen=True)
class SearchReport:
    """All bisections of a run.

    Attributes:
        sides: the labels of both sides.
        first: the case whose first layer beyond its tolerance comes first in the encoder; None if there is none.
        skipped: sets that were not searched, and why.
    """

    sides: tuple[str, str]
    bisections: tuple[Bisection, ...]
    first: Bisection | None
    skipped: Skipped


def search(request: ParityRequest, tolerance: float | None, progress: Progress) -> SearchReport:
    """Search each picture at each graph of the set that was asked for; of every set, where none was.

    With a second side, only the first set is searched: the other side has but one.

    Args:
        tolerance: relative L2 of a layer; None for the looser of both sides' defaults.

    Raises:
        ContractError: an input that cannot be used, or a side that shows no layers.
    """
    with ExitStack() as stack:
        pictures = {} if request.dump else pictures_of(request.images)
        candidate = open_candidate(request, pictures, stack, progress)
        request = as_chosen(request, candidate)
        other = open_against(request, candidate.bundle, stack)
        reference = open_reference(request.model, candidate.bundle)
        stack.callback(reference.close)
        label, found = _search_one(candidate, reference, other, tolerance, progress)
        precisions, skipped = other_precisions(candidate, request.options)
        if other is not None:
            precisions, skipped = [], skipped | {f"set {name}": "the other side has one set" for name in precisions}
        for precision in precisions:
            with opened_set(request.bundle, request.options, precision, skipped) as edge:
                if edge is not None:
                    one = edge_candidate(edge, pictures, progress)
                    found += _search_one(one, reference, None, tolerance, progress)[1]
        return SearchReport(label, tuple(found), earliest(found, candidate.bundle.manifest.vision), skipped)


def _search_one(
    candidate: Candidate, reference: PytorchBackend, other: Edge | None, tolerance: float | None, progress: Progress
) -> tuple[tuple[str, str], list[Bisection]]:
    """One set's sides and bisections."""
    vision = candidate.bundle.manifest.vision
    one = candidate.layers()
    two = TorchLayers(reference, vision) if other is None else layers_of(other)
    if one is None:
        raise no_layers(candidate.backend, "--backend")
    if two is None:
        raise no_layers("the other side", "--against-backend")
    if tolerance is None:
        precisions = [candidate.precision, *([other.encoder.precision] if other else [])]
        tolerance = max(limits_of(name).layer_tolerance for name in precisions)
    cases = (sample.case for sample in candidate.samples)
    served = (case for case in cases if one.serves(case) and two.serves(case))
    found = bisect(candidate.precision, served, vision, one, two, tolerance, progress)
    return (f"{candidate.bundle.path.name}: {one.label}", two.label), found
