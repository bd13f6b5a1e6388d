"""The side under test: an engine that runs here, or what a device dumped of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.tools.parity.dump.dump import DumpLayers, check_dump, dump_samples
from qwen3vl_edge.tools.parity.dump.dump_format import Dump, read_dump
from qwen3vl_edge.tools.parity.layers.names import LayerSource
from qwen3vl_edge.tools.parity.layers.sources import layers_of
from qwen3vl_edge.tools.parity.samples import Sample, edge_cases, run_cases

ANY_LAYER = "pos_embed.flat"


@dataclass(frozen=True)
class Candidate:
    """What is held against PyTorch.

    Attributes:
        edge: None for a dump, which cannot be asked anything more.
        samples: what it returned for each picture at each bucket; to be read once.
        layers: opens its own intermediate outputs; None where it shows none.
        facts: where a dump was made.
    """

    bundle: Bundle
    backend: str
    precision: str
    edge: Edge | None
    samples: Iterator[Sample]
    layers: Callable[[], LayerSource | None]
    facts: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision}" + (f", {self.facts['dump']}" if self.facts else "")


def open_engine(
    path: Path, options: EdgeOptions, pictures: dict[str, Any], stack: ExitStack, progress: Callable[[str], None]
) -> Candidate:
    """An engine that runs here, on these pictures; closed with the stack.

    Raises:
        BundleError: a bundle that cannot be used.
        InputError: a backend that cannot be used.
    """
    edge = stack.enter_context(open_edge(path, options))
    samples = run_cases(edge, edge_cases(edge, pictures, progress))
    return Candidate(edge.bundle, edge.engine.name, edge.engine.precision, edge, samples, lambda: layers_of(edge), {})


def open_dump(path: Path, bundle_path: Path) -> Candidate:
    """What a device dumped of this bundle.

    Raises:
        InputError: no dump, or a damaged one.
        ModelMismatchError: a dump of another bundle.
    """
    dump, bundle = read_dump(path), open_bundle(bundle_path)
    check_dump(dump, bundle)
    layers = DumpLayers(dump)
    return Candidate(
        bundle,
        dump.meta.backend,
        dump.meta.precision,
        None,
        dump_samples(dump, bundle.manifest),
        lambda: layers if layers.offers(ANY_LAYER) else None,
        _dump_facts(dump),
    )


def _dump_facts(dump: Dump) -> dict[str, Any]:
    meta = dump.meta
    facts = {"dump": dump.path.name, "backend": meta.backend, "precision": meta.precision}
    return facts | {"manifest_sha256": meta.manifest_sha256} | meta.environment
