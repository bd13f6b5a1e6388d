"""Fewer bytes on the wire: what each packing costs in time and answers, and at which link it pays.

python -m qwen3vl_edge.tools.dev.bench.packing --bundle BUNDLE --model reference/qwen3vl-tiny
    --out docs/reports/benchmarks/packing.json

Answers and accuracy are of the reference checkpoint's held-out questions, each about one picture, pair or clip;
answers also of a mix of conversations: one picture, several, a clip, both, several turns, text alone. Each is encoded
once, in float32. An answer is that of fp32 if each of fp32's tokens is the likeliest in one pass along it; others are
generated. Bytes and times are of one picture of the 2B model (196 visual tokens, 2048 wide, three DeepStack levels),
packings in turn, medians of processor time on one thread; the values are the reference encoder's own, of many pictures,
so that zstd sees real numbers. A bundle with a basis (`fit-basis`) is measured with it too; the basis of the wide
picture has as large a part of its columns as directions, but any ones: bytes and times are those of a fitted one, and
what zstd makes of it is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.wire.basis import MULTIPLE, Basis, TensorBasis, bases_of, basis_file, parse_basis
from qwen3vl_edge.contract.wire.codec import decode_medium, encode_medium
from qwen3vl_edge.contract.wire.compression import compress, decompress
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, FROM_FP32, PACKINGS
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling, pack_media
from qwen3vl_edge.edge_runtime.bundle_basis import open_basis
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.bench.measurement import rotated, write_document
from qwen3vl_edge.tools.dev.bench.wire_formats import GRID, LEVELS, TOKENS, WIDTH
from qwen3vl_edge.tools.dev.train_reference.evaluate import MAX_NEW_TOKENS, score
from qwen3vl_edge.tools.dev.train_reference.heldout import HeldoutQuestion, heldout_questions, mixed_prompts
from qwen3vl_edge.tools.parity.end_to_end import Split, open_both

Ids = tuple[int, ...]
PLAIN_NAMES = ("fp16", *PACKINGS)
ENOUGH = 200  # questions: their pictures have as many values as a wide one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the reference checkpoint")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--mix", type=int, default=220, help="conversations of every structure")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--times-of", type=Path, help="measure bytes and times alone, and keep this document's answers")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    questions, mix = heldout_questions(arguments.questions), mixed_prompts(arguments.mix)
    options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype="fp32")
    with open_edge(arguments.bundle, options) as edge:
        split = open_both(edge, arguments.model)[0]
        basis = open_basis(edge.bundle) if edge.bundle.manifest.basis is not None else None
        names = (*PLAIN_NAMES, *(BASIS_PACKINGS if basis is not None else ()))
        if arguments.times_of is not None:
            kept = json.loads(arguments.times_of.read_text(encoding="utf-8"))
            requests = [edge.encode(question.messages, Sampling()).request for question in questions[:ENOUGH]]
            rows = [row for name in names for row in kept["rows"] if row["name"] == name]
            if "mix" not in kept or [row["name"] for row in rows] != list(names):
                parser.error(f"{arguments.times_of} has not the answers of every form and of the mix: measure all")
        else:
            asked, asked_mix = _Asked.by(split, questions), _Asked.by(split, mix)
            requests = asked.requests[:ENOUGH]
    media = [item for request in requests for item in request.media]
    if arguments.times_of is None:
        rows = [_answers(name, split, asked, asked_mix, media, basis) for name in names]
    times = _times(_wide(media), arguments.rounds, names, None if basis is None else _wide_basis(basis))
    rows = [{**row, **times[row["name"]]} for row in rows]
    counts = {"questions": len(questions), "mix": len(mix)}
    if arguments.times_of is not None:
        counts = {name: kept[name] for name in counts}
    counts["rounds"] = arguments.rounds
    write_document(arguments.out, {**counts, "clock": "processor time", "rows": rows})
    print(json.dumps(rows, indent=1))


@dataclass(frozen=True)
class _Asked:
    """Questions, their requests with the encoder's own float32 embeddings, and the answers to those."""

    questions: list[HeldoutQuestion]
    requests: list[GenerateRequest]
    answers: list[Ids]

    @classmethod
    def by(cls, split: Split, questions: list[HeldoutQuestion]) -> _Asked:
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
        requests = [split.edge.encode(question.messages, sampling).request for question in questions]
        return cls(questions, requests, [_greedy(split, request, None) for request in requests])

    def again(self, split: Split, name: str, basis: Basis | None) -> list[Ids]:
        """The answers to the same embeddings in a wire form."""
        answers = []
        for request, expected in zip(self.requests, self.answers, strict=True):
            media = tuple(_as_sent(item, name, basis) for item in request.media)
            answers.append(_greedy(split, replace(request, media=media), basis, expected) if media else expected)
        return answers

    def others(self, answers: list[Ids]) -> Counter[str]:
        """How many answers are not those to the encoder's own values, by task."""
        each = zip(self.questions, answers, self.answers, strict=True)
        return Counter(question.task for question, one, other in each if one != other)


def _greedy(split: Split, request: GenerateRequest, basis: Basis | None, expected: Ids | None = None) -> Ids:
    """The server's greedy answer, generated if it is not the expected one."""
    inputs, _ = split.received(request, basis)
    if expected is not None and split.agrees(inputs, expected):
        return expected
    return split.greedy(inputs, MAX_NEW_TOKENS)


def _as_sent(item: MediaEmbeddings, name: str, basis: Basis | None) -> MediaEmbeddings:
    """As `--wire-dtype` NAME has it."""
    return _packed(item if name in FROM_FP32 else _halves(item), name, basis)


def _halves(item: MediaEmbeddings) -> MediaEmbeddings:
    embeds, *deepstack = (array.astype(np.float16) for array in item.arrays)
    return replace(item, embeds=embeds, deepstack=tuple(deepstack))


def _packed(item: MediaEmbeddings, name: str, basis: Basis | None) -> MediaEmbeddings:
    if name in BASIS_PACKINGS:
        return pack_media(item, BASIS_PACKINGS[name], basis)
    return pack_media(item, PACKINGS[name]) if name in PACKINGS else item


def _answers(
    name: str, split: Split, asked: _Asked, mix: _Asked, media: list[MediaEmbeddings], basis: Basis | None
) -> dict[str, Any]:
    answers = asked.again(split, name, basis)
    others, of_mix = asked.others(answers), mix.others(mix.again(split, name, basis))
    counts = len(asked.questions), len(mix.questions)
    print(f"{name}: {others.total()} of {counts[0]} other answers, {dict(of_mix)} of the mix's {counts[1]}", flush=True)
    worst = [
        min(distance(array, other).cosine for array, other in zip(item.arrays, sent.arrays, strict=True))
        for item, sent in ((item, _as_sent(item, name, basis)) for item in media)
    ]
    texts = [split.loaded.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    return {
        "name": name,
        "min_cosine": min(worst),
        "same_answers": 1 - others.total() / counts[0],
        "accuracy": score(asked.questions, texts).overall,
        "same_answers_mix": 1 - of_mix.total() / counts[1],
        "other_answers_mix": dict(of_mix),
    }


def _wide(media: list[MediaEmbeddings]) -> MediaEmbeddings:
    """One picture of the 2B model's size, of these pictures' numbers."""

    def widened(arrays: list[Any]) -> Any:
        values = np.concatenate([array.reshape(-1) for array in arrays])[: TOKENS * WIDTH]
        return values.reshape(TOKENS, WIDTH)

    levels = tuple(widened([item.deepstack[level % len(item.deepstack)] for item in media]) for level in range(LEVELS))
    return MediaEmbeddings("image", GRID, widened([item.embeds for item in media]), levels)


def _wide_basis(basis: Basis) -> Basis:
    """One for `_wide`, with as large a part of its columns as directions."""
    random = np.random.default_rng(0)
    tensors = []
    for rank in basis.ranks:
        rank = round(rank / basis.columns * WIDTH / MULTIPLE) * MULTIPLE
        directions = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0][:rank]
        tensors.append(TensorBasis(np.zeros(WIDTH, np.float32), np.rint(directions * 2**17).astype(np.int16), -17))
    return parse_basis(basis_file(tensors, "0" * 64))


def _times(
    item: MediaEmbeddings, rounds: int, names: tuple[str, ...], basis: Basis | None
) -> dict[str, dict[str, Any]]:
    """By packing: bytes, bytes after zstd, seconds to pack and write and to read and unpack, and where that pays."""
    halves = _halves(item)
    held = bases_of(basis)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    zstd: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    bodies: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        for name in rotated(names, number):
            started = time.process_time()
            sent = _packed(item if name in FROM_FP32 else halves, name, basis)
            wire = encode_medium(sent, "0" * 64)
            encoded = time.process_time()
            body = bytes(wire)
            joined = time.process_time()
            decode_medium(body, bases=held)
            ended = time.process_time()
            bodies[name] = body
            for samples, value in zip(seconds[name], (encoded - started, ended - joined), strict=True):
                samples.append(value)
            assert wire.size == len(body)
            started = time.process_time()
            small = compress(wire)
            compressed = time.process_time()
            assert decompress(bytes(small), len(body)) == body
            for samples, value in zip(
                zstd[name], (compressed - started, time.process_time() - compressed), strict=True
            ):
                samples.append(value)
            sizes[name] = small.size
    plain = len(bodies["fp16"])
    results = {}
    for name in names:
        encode, decode = (statistics.median(values) for values in seconds[name])
        extra = encode + decode - sum(statistics.median(values) for values in seconds["fp16"])
        saved = plain - len(bodies[name])
        results[name] = {
            "bytes": len(bodies[name]),
            "share": round(len(bodies[name]) / plain, 4),
            "zstd_share": None if name in BASIS_PACKINGS else round(sizes[name] / plain, 4),
            "zstd_ms": []
            if name in BASIS_PACKINGS
            else [round(statistics.median(values) * 1e3, 3) for values in zstd[name]],
            "encode_ms": round(encode * 1e3, 3),
            "decode_ms": round(decode * 1e3, 3),
            "pays_below_mbit": round(saved * 8 / extra / 1e6, 1) if saved > 0 and extra > 0 else None,
        }
    return results


if __name__ == "__main__":
    main()
