"""The kernels of a plan, from what the builder lists of them: how many a block, and what each of them is.

TensorRT-RTX logs a list `Layers:` once a plan is complete, without a GPU. It is the engine inspector's, which TensorRT
gives as JSON where a GPU can load the plan; both have the same fields. A kernel's name is made of the first letters
of its operations (`__myl_ReshTranSlicSlicMul…_myl0_4`: the fifth kernel of the first profile), its metadata are the
names of the ONNX nodes that went into it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3vl_edge.contract.errors import BundleError
from qwen3vl_edge.contract.formats.dataclass_json import from_json

KINDS = ("product", "attention", "softmax", "movement", "other")
"""A matrix product with what is fused into it; a whole attention in one kernel; the softmax of an attention that is
not; moves, casts or transposes and nothing else; the rest: norms, rotary angles, activations, rescaling."""

_MOVES = {"Resh", "Tran", "Slic", "Conc", "Gath", "Move", "Cast"}
_NO_KERNELS = {"signal", "wait"}  # of streams
_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), .*?(?:Metadata: (?P<metadata>.*))?$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PLACE = re.compile(r"_myl(\d+)_\d+$")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        kind: one of `KINDS`.
        part: the last part of the encoder that it computes for, as `blocks.3`, "input" or "mergers"; "" is unknown.
        nodes: of the ONNX graph, that went into it.
    """

    name: str
    kind: str
    part: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class BucketKernels:
    """The kernels that run for one bucket, in their order."""

    bucket: str
    kernels: tuple[Kernel, ...]

    def of_blocks(self) -> dict[str, tuple[Kernel, ...]]:
        """Those of each encoder block."""
        names = dict.fromkeys(item.part for item in self.kernels if item.part.startswith("blocks."))
        return {name: tuple(item for item in self.kernels if item.part == name) for name in names}

    def count(self, kind: str) -> int:
        """How many are of a kind."""
        return Counter(item.kind for item in self.kernels)[kind]

    @property
    def fused_blocks(self) -> int:
        """Blocks whose attention is one kernel."""
        return sum(
            sum(item.kind == "attention" for item in block) == 1 and all(item.kind != "softmax" for item in block)
            for block in self.of_blocks().values()
        )

    def summary(self) -> dict[str, object]:
        """Counts, for a table or JSON."""
        blocks = [len(block) for block in self.of_blocks().values()]
        return {
            "bucket": self.bucket,
            "kernels": len(self.kernels),
            "blocks": len(blocks),
            "fewest_a_block": min(blocks, default=0),
            "most_a_block": max(blocks, default=0),
            "fused_attention": self.fused_blocks,
            **{kind: self.count(kind) for kind in KINDS},
        }


def kernels_of_log(log: str, buckets: Sequence[str]) -> tuple[BucketKernels, ...]:
    """The kernels of a plan, from the builder's message that begins with `Layers:`.

    Args:
        buckets: of the plan's profiles, in their order.
    """
    lines = (_LINE.match(line) for line in log.splitlines())
    return _by_bucket((_kernel(line["name"], line["type"], line["metadata"] or "") for line in lines if line), buckets)


def kernels_of_inspector(report: str, buckets: Sequence[str]) -> tuple[BucketKernels, ...]:
    """The same from the engine inspector's JSON."""
    rows = [row for row in json.loads(report)["Layers"] if isinstance(row, dict)]  # a plan without detail has names
    return _by_bucket((_kernel(row["Name"], row["LayerType"], row.get("Metadata", "")) for row in rows), buckets)


def _by_bucket(kernels: Iterable[Kernel | None], buckets: Sequence[str]) -> tuple[BucketKernels, ...]:
    every = [item for item in kernels if item is not None]
    profiles: dict[int, list[Kernel]] = {}
    for item in every:
        place = _PLACE.search(item.name)
        profiles.setdefault(int(place[1]) if place else 0, []).append(item)
    if len(profiles) != len(buckets):  # the builder numbered something else: no bucket's share is known
        return (BucketKernels(", ".join(buckets), tuple(every)),) if every else ()
    ordered = (profiles[index] for index in sorted(profiles))
    return tuple(BucketKernels(name, tuple(items)) for name, items in zip(buckets, ordered, strict=True))


def _kernel(name: str, layer_type: str, metadata: str) -> Kernel | None:
    if layer_type in _NO_KERNELS:
        return None
    nodes = tuple(_NODE.findall(metadata))
    return Kernel(name, _kind(name, layer_type, nodes), _part(nodes), nodes)


def _kind(name: str, layer_type: str, nodes: Sequence[str]) -> str:
    operations = re.findall("[A-Z][a-z]*", name.split("_myl_")[-1].split("_")[0]) if "__myl_" in name else []
    if "mha" in name:
        return "attention"
    if layer_type == "gemm" or "Fc" in operations or "gemm" in name:
        return "product"
    if any(node.endswith(".attn.softmax") for node in nodes):
        return "softmax"
    return "movement" if operations and _MOVES.issuperset(operations) else "other"


def _part(nodes: Sequence[str]) -> str:
    """Of nodes of several parts, the last: a sum that the next block's norm is fused into is that block's first."""
    if any("merger" in node.split(".")[0] for node in nodes):
        return "mergers"
    blocks = [int(match[1]) for node in nodes if (match := _BLOCK.match(node))]
    if blocks:
        return f"blocks.{max(blocks)}"
    return "input" if nodes else ""


@dataclass(frozen=True)
class KernelReport:
    """What `build --report` writes beside a plan."""

    buckets: tuple[BucketKernels, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_kernels(path: Path) -> KernelReport:
    """A report written by `build --report`.

    Raises:
        BundleError: it is missing, or no such file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} is not a list of kernels ({error})", field=str(path), remedy="Build with --report again."
        ) from None
    return from_json(KernelReport, document, str(path))
