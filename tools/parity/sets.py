"""The bundle's other sets of graphs, each compared with PyTorch as the first is, of which alone answers are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_edge.contract.bundle.manifest import PrecisionSet
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.tools.parity.candidate import Candidate
from qwen3vl_edge.tools.parity.encoder import EncoderRow

Skipped = dict[str, str]
"""What was not compared, and why."""


@dataclass(frozen=True)
class SetReport:
    """The encoder's outputs of one set."""

    precision: str
    encoder: tuple[EncoderRow, ...]


def other_precisions(candidate: Candidate, options: EdgeOptions) -> tuple[list[str], Skipped]:
    """Precisions to compare beside the candidate's: all of the bundle, unless one was asked for.

    Asking for one is how a run is kept short; a dump has one set, and PyTorch runs no graph at all.
    """
    others = [item.precision for item in candidate.bundle.manifest.precisions if item.precision != candidate.precision]
    reason = None
    if candidate.edge is None:
        reason = "a dump holds one set"
    elif options.backend == "pytorch":
        reason = "backend pytorch runs no graphs"
    elif options.backend_options.precision is not None:
        reason = f"--precision {options.backend_options.precision} was asked for"
    return ([], {f"set {name}": reason for name in others}) if reason else (others, {})


@contextmanager
def opened_set(path: Path, options: EdgeOptions, precision: str, skipped: Skipped) -> Iterator[Edge | None]:
    """The edge of another precision; None, with the reason in `skipped`, where the backend cannot run it."""
    try:
        edge = open_edge(path, _with_precision(options, precision))
    except ContractError as error:
        skipped[f"set {precision}"] = error.message
        yield None
        return
    with edge:
        yield edge


def _with_precision(options: EdgeOptions, precision: str) -> EdgeOptions:
    # A form that needs fp16's range or a basis is the first set's affair: no other set's embeddings are sent.
    return replace(options, backend_options=replace(options.backend_options, precision=precision), wire_dtype="fp16")


def graphs_without_rows(graphs: PrecisionSet, rows: Sequence[EncoderRow], reason: str) -> Skipped:
    """The graphs of a set that no row is about."""
    measured = {(row.bucket, row.graph) for row in rows if row.graph != "dynamic"}
    kinds = {row.graph for row in rows}
    return {
        graph.path: reason
        for graph in graphs.graphs
        if (graph.kind not in kinds if graph.bucket is None else (graph.bucket, graph.kind) not in measured)
    }
