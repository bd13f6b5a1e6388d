"""The candidate of a comparison with PyTorch: a backend that runs here, or a device's dump."""

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
    """What is compared with PyTorch in fp32, the reference.

    Attributes:
        edge: None for a dump, which can run nothing more.
        samples: the candidate's embeddings of each picture at each graph; an iterator, read once.
        layers: opens its own intermediate outputs; returns None where it has none.
        facts: of the machine that a dump was made on.
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


def open_backend_candidate(
    path: Path, options: EdgeOptions, pictures: dict[str, Any], stack: ExitStack, progress: Callable[[str], None]
) -> Candidate:
    """A backend that runs here, on these pictures; closed with the stack.

    Raises:
        BundleError: a bundle that cannot be used.
        InputError: a backend that cannot be used.
    """
    return edge_candidate(stack.enter_context(open_edge(path, options)), pictures, progress)


def edge_candidate(edge: Edge, pictures: dict[str, Any], progress: Callable[[str], None]) -> Candidate:
    """An edge that is open already, on these pictures."""
    samples = run_cases(edge, edge_cases(edge, pictures, progress))
    name, precision = edge.encoder.name, edge.encoder.precision
    return Candidate(edge.bundle, name, precision, edge, samples, lambda: layers_of(edge), {})


def open_dump_candidate(path: Path, bundle_path: Path) -> Candidate:
    """A device's dump of this bundle.

    Raises:
        InputError: no dump, or a corrupt one.
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
