"""What goes lower than the packings, and what it costs in answers: tried on the reference checkpoint, and not offered.

python -m qwen3vl_edge.tools.dev.bench.smaller --bundle BUNDLE --model reference/qwen3vl-tiny
    --out docs/reports/benchmarks/smaller.json

Each idea is a function from embeddings to those that a server would get back, and the bytes that it would be sent:

near-duplicate tokens: in a clip, a token whose embeddings turn little from the one at its place in the frame before
    (cosine of all four tensors) is not sent; the server takes the one before.
entropy coding: zstd at its highest level over the packed codes, as a bound for what better coding of bytes may give;
    over coefficients in the bundle's basis too, where it has one (`fit-basis`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from qwen3vl_edge.contract.wire.basis import Basis
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS, pack, unpack
from qwen3vl_edge.contract.wire.request import MediaEmbeddings, pack_media
from qwen3vl_edge.edge_runtime.bundle_basis import open_basis
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.bench.measurement import write_document
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split, score
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import open_both

Arrays = list[NDArray[Any]]
Idea = Callable[[Arrays, MediaEmbeddings], tuple[Arrays, int]]
"""From a medium's four arrays in float32 to what comes back of them, and the bytes that were sent."""


def without_duplicates(cosine: float, packing: str) -> Idea:
    """Leave out what a clip's frame has in common with the one before."""

    def idea(arrays: Arrays, item: MediaEmbeddings) -> tuple[Arrays, int]:
        packed = [pack(array.astype(np.float16), PACKINGS[packing]) for array in arrays]
        frames = [unpack(one).reshape(item.grid.t, -1, arrays[0].shape[1]) for one in packed]
        sent = np.ones(frames[0].shape[:2], bool)
        for at in range(1, item.grid.t):
            least = np.min([_cosines(frame[at], frame[at - 1]) for frame in frames], axis=0)
            sent[at] = least < cosine
            for frame in frames:
                frame[at][~sent[at]] = frame[at - 1][~sent[at]]
        size = int(sum(one.nbytes for one in packed) * sent.mean() + sent.size / 8)
        return [frame.reshape(arrays[0].shape) for frame in frames], size

    return idea


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
    a, b = one.astype(np.float32), other.astype(np.float32)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float32] = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def coded(packing: str, basis: Basis | None = None) -> Idea:
    """The packed bytes, of rows or of coefficients, through zstd at its highest level."""
    compressor = zstandard.ZstdCompressor(level=22)

    def idea(arrays: Arrays, item: MediaEmbeddings) -> tuple[Arrays, int]:
        embeds, *deepstack = (array.astype(np.float16) for array in arrays)
        media = pack_media(MediaEmbeddings(item.kind, item.grid, embeds, tuple(deepstack)), PACKINGS[packing], basis)
        body = b"".join(one.codes.tobytes() + one.scales.tobytes() for one in media.packed)
        return list(media.arrays), len(compressor.compress(body))

    return idea


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    questions = heldout_questions(arguments.questions)
    options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype="fp32")
    with open_edge(arguments.bundle, options) as edge:
        split = open_both(edge, arguments.model)[0]
        basis = open_basis(edge.bundle) if edge.bundle.manifest.basis is not None else None
        base = answer_all_split(split, questions)
        rows = []
        for name, idea in _ideas(basis).items():
            sizes = [0, 0]
            trying = _Trying(edge, idea, sizes)
            answers = answer_all_split(split.with_edge(trying), questions)
            same = sum(one == other for one, other in zip(answers, base, strict=True)) / len(base)
            rows.append(
                {
                    "name": name,
                    "share": round(sizes[1] / sizes[0], 4),
                    "same_answers": same,
                    "accuracy": score(questions, answers).overall,
                }
            )
            print(rows[-1], flush=True)
    document = {"questions": len(questions), "accuracy_unchanged": score(questions, base).overall, "rows": rows}
    write_document(arguments.out, document)


def _ideas(basis: Basis | None) -> dict[str, Idea]:
    ideas = {
        "clips without duplicates beyond cosine 0.98, int8": without_duplicates(0.98, "int8"),
        "clips without duplicates beyond cosine 0.9, int8": without_duplicates(0.9, "int8"),
        "int8, coded": coded("int8"),
        "int4, coded": coded("int4"),
    }
    if basis is not None:
        ideas |= {f"{name}, coded": coded(packing.name, basis) for name, packing in BASIS_PACKINGS.items()}
    return ideas


def _arrays(item: MediaEmbeddings) -> Arrays:
    return [array.astype(np.float32) for array in item.arrays]


class _Trying(Edge):
    """The same device, its embeddings as an idea would bring them."""

    def __init__(self, edge: Edge, idea: Idea, sizes: list[int]) -> None:
        self.__dict__ |= edge.__dict__
        self._idea, self._sizes = idea, sizes

    def _pack(self, media: tuple[MediaEmbeddings, ...]) -> tuple[MediaEmbeddings, ...]:
        return tuple(self._through(item) for item in media)

    def _through(self, item: MediaEmbeddings) -> MediaEmbeddings:
        arrays, size = self._idea(_arrays(item), item)
        self._sizes[0] += sum(array.size for array in arrays) * 2
        self._sizes[1] += size
        embeds, *deepstack = (array.astype(np.float16) for array in arrays)
        return replace(item, embeds=embeds, deepstack=tuple(deepstack))


if __name__ == "__main__":
    main()
