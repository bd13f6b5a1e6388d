"""What the hot paths cost in counts that no machine changes: Python instructions, bytes allocated, nodes of a graph.

python -m qwen3vl_edge.tools.dev.bench.hot_paths --write     # after a change that is meant to cost more, or costs less

Counts stand in hot_paths.json; tests/tools/dev/test_hot_paths.py compares today's code with a margin, so that a copy
too many or a loop over values is noticed by whoever adds it, without a clock.
"""

from __future__ import annotations

import argparse
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.packing import PACKINGS, pack, unpack
from qwen3vl_edge.contract.wire.request import Limits
from qwen3vl_edge.tools.dev.bench.wire_formats import pictures, request_of
from qwen3vl_edge.tools.dev.instructions import instructions

COUNTS = Path(__file__).with_suffix(".json")
IMAGES = 4
MARGIN = 1.5  # Python's versions differ in their instructions, and numpy's in its buffers
SLACK_INSTRUCTIONS, SLACK_BYTES = 500, 64 * 2**10


def hot_paths() -> dict[str, tuple[Callable[[], object], int]]:
    """By name: the work, on four pictures of the 2B model's size, and the bytes that it handles."""
    arrays = pictures(IMAGES)
    request = request_of(arrays)
    size = sum(array.nbytes for array in arrays)
    body = bytes(encode_request(request))
    int8 = pack(arrays[0], PACKINGS["int8"])
    limits = Limits()
    return {
        "encode a request": (lambda: encode_request(request), size),
        "decode a request": (lambda: decode_request(body, limits), size),
        "hash a picture's embeddings": (lambda: embedding_hash(request.media[0], "0" * 64), size // IMAGES),
        "pack a tensor as int8": (lambda: pack(arrays[0], PACKINGS["int8"]), arrays[0].nbytes),
        "pack a tensor as int4": (lambda: pack(arrays[0], PACKINGS["int4"]), arrays[0].nbytes),
        "unpack a tensor of int8": (lambda: unpack(int8), arrays[0].nbytes),
    }


def count(work: Callable[[], object], size: int) -> dict[str, float]:
    """Python instructions of one run, and the most bytes it allocates, as a share of the bytes that it handles."""
    work()  # caches are filled, modules imported
    counted = instructions(work)
    tracemalloc.start()
    result = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del result
    return {"instructions": counted, "bytes": size, "allocated_share": round(peak / size, 4)}


def count_all() -> dict[str, dict[str, float]]:
    """Every hot path's counts."""
    return {name: count(work, size) for name, (work, size) in hot_paths().items()}


def graph_counts(path: Path) -> dict[str, int]:
    """Nodes of an ONNX graph, all and those that multiply matrices."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return {"nodes": len(nodes), "products": sum(node.op_type in ("Gemm", "MatMul") for node in nodes)}


def above(name: str, counts: dict[str, float], kept: dict[str, float]) -> list[str]:
    """What costs more than it did, in words."""
    excesses = []
    if counts["instructions"] > MARGIN * kept["instructions"] + SLACK_INSTRUCTIONS:
        excesses.append(f"{name}: {counts['instructions']:,.0f} instructions, {kept['instructions']:,.0f} before")
    allowed = MARGIN * kept["allocated_share"] + SLACK_BYTES / kept["bytes"]
    if counts["allocated_share"] > allowed:
        share = kept["allocated_share"]
        excesses.append(f"{name}: allocates {counts['allocated_share']:.2f} times its bytes, {share:.2f} before")
    return excesses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep today's counts")
    arguments = parser.parse_args()
    counts = count_all()
    print(json.dumps(counts, indent=1))
    if arguments.write:
        atomic.write_bytes(COUNTS, (json.dumps({"numpy": np.__version__, "paths": counts}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
