"""A basis for embeddings on the wire, fitted to the encoder's outputs on calibration data (`contract/wire/basis.py`).

Principal components of each of the encoder's tensors, from its rows' mean and covariance, which are summed while the
data is streamed. Every eighth sample is held out: on its rows the ranks are chosen and measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.samples import Selection, bucket_policy, list_sources, stream_samples
from qwen3vl_edge.contract.bundle.edit import check_writable, edit
from qwen3vl_edge.contract.bundle.manifest import PrecisionSet
from qwen3vl_edge.contract.bundle.measurements import BasisRecord
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle, record_file
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.wire.basis import MAX_RANK, MULTIPLE, TensorBasis, basis_file, parse_basis
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, run_encoder

Progress = Callable[[str, float], None]
Rows = NDArray[np.float64]

HELD_OUT_EVERY = 8
HELD_OUT_ROWS = 64  # of a sample: enough of them, and no more memory for more data
STRONGEST_SPREAD = 4.0  # of its coefficients; their steps and their largest are qwen3vl_edge.contract.wire.basis's


@dataclass(frozen=True)
class BasisRequest:
    """Options of a fit.

    Attributes:
        data: a folder of pictures and clips, or messages as JSON lines.
        samples: pictures and clips to encode.
        cosine: least mean cosine of a tensor's held-out rows with their projection on its directions.
        rank: directions of every tensor, in place of `cosine`; 0 to choose by `cosine`.
        precision: of the bundle's sets, None for its first.
        seed: of the choice among the data.
        threads: of ONNX Runtime, 0 for its choice.
    """

    data: Path
    samples: int = 256
    cosine: float = 0.999
    rank: int = 0
    precision: str | None = None
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True)
class BasisResult:
    """The basis as the manifest records it, and which data was used."""

    record: BasisRecord
    sha256: str
    columns: int
    selection: Selection


class Covariance:
    """Sums over rows [n, D] of one tensor, in float64."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._sum = np.zeros(columns)
        self._products = np.zeros((columns, columns))

    def add(self, rows: NDArray[Any]) -> None:
        wide = rows.astype(np.float64)
        self.rows += len(wide)
        self._sum += wide.sum(axis=0)
        self._products += wide.T @ wide

    def principal(self) -> tuple[NDArray[np.float64], NDArray[np.float64], Rows]:
        """Mean [D], the spread of each principal component [D], and the components [D, D], the strongest first."""
        mean = self._sum / self.rows
        variances, vectors = np.linalg.eigh(self._products / self.rows - np.outer(mean, mean))
        return mean, np.sqrt(np.maximum(variances[::-1], 0)), np.ascontiguousarray(vectors.T[::-1])


def fit_basis(path: Path, request: BasisRequest, progress: Progress = lambda what, done: None) -> BasisResult:
    """Fit a basis and write it into the bundle, in place of the one that it has; the manifest is replaced last.

    Raises:
        InputError: options or data that cannot be used, or embeddings that need as many directions as columns.
        BundleError: the bundle is missing, altered or not writable, or has no such precision.
    """
    _check(request)
    bundle = open_bundle(path)
    check_writable(path)
    graphs = bundle.manifest.precision(request.precision)
    selection = Selection()
    columns = bundle.manifest.vision.out_hidden_size
    sums = [Covariance(columns) for _ in bundle.manifest.vision.output_names]
    held: list[list[NDArray[Any]]] = [[] for _ in sums]
    for index, arrays in enumerate(_embeddings(bundle, request, selection, progress)):
        for tensor, rows in enumerate(arrays):
            if index % HELD_OUT_EVERY == 1:
                held[tensor].append(rows[:: -(-len(rows) // HELD_OUT_ROWS)])
            else:
                sums[tensor].add(rows)
    if not held[0]:
        usable = sum(selection.per_bucket.values())
        raise InputError("too few usable samples in the data", field="--data", expected="at least 2", got=usable)
    fitted = [_fit(one, np.concatenate(rows), request) for one, rows in zip(sums, held, strict=True)]
    content = basis_file([basis for basis, _ in fitted], bundle.manifest.model.model_hash)
    basis = parse_basis(content)
    record = BasisRecord(
        path=f"wire/basis-{basis.sha256[:8]}.safetensors",
        precision=graphs.precision,
        samples=sum(selection.per_bucket.values()),
        rows=sums[0].rows,
        held_out_rows=sum(map(len, held[0])),
        ranks=basis.ranks,
        mean_cosines=tuple(round(float(cosines.mean()), 6) for _, cosines in fitted),
        least_cosines=tuple(round(float(cosines.min()), 6) for _, cosines in fitted),
    )
    _record(bundle, graphs, record, content)
    return BasisResult(record, basis.sha256, columns, selection)


def _check(request: BasisRequest) -> None:
    if request.samples < 2:
        raise InputError("too few samples", field="--samples", expected="at least 2", got=request.samples)
    if not 0.0 < request.cosine < 1.0:
        raise InputError("bad target cosine", field="--cosine", expected="between 0 and 1", got=request.cosine)
    if not 0 <= request.rank <= MAX_RANK or request.rank % MULTIPLE:
        expected = f"a multiple of {MULTIPLE} up to {MAX_RANK}, or 0 to go by --cosine"
        raise InputError("bad rank", field="--rank", expected=expected, got=request.rank)


def _embeddings(
    bundle: Bundle, request: BasisRequest, selection: Selection, progress: Progress
) -> Iterator[tuple[NDArray[Any], ...]]:
    """The encoder's tensors of one sample after another, float32 or float16 [n, D]."""
    sources = list_sources(request.data, request.seed)
    policy = bucket_policy(bundle, request.precision)
    encoder = load_backend("onnxruntime", bundle, BackendOptions(request.precision, request.threads))
    try:
        done = 0
        for _, samples in stream_samples(sources, bundle, policy, selection, request.samples):
            for item in samples:
                progress(f"encoding {item.source}", done / min(request.samples, len(sources)))
                embeddings = run_encoder(encoder, item.input)
                done += 1
                yield embeddings.embeds, *embeddings.deepstack
    finally:
        encoder.close()


def _fit(covariance: Covariance, held: NDArray[Any], request: BasisRequest) -> tuple[TensorBasis, Rows]:
    """The basis of one tensor, and the cosine of each held-out row with its projection."""
    mean, spreads, vectors = covariance.principal()
    ranks, cosines = _cosines(held.astype(np.float64), mean, vectors)
    means = cosines.mean(axis=0)
    if request.rank:
        chosen = ranks.index(request.rank) if request.rank in ranks else None
        target = f"--rank {request.rank}"
    else:
        chosen = next((index for index, value in enumerate(means) if value >= request.cosine), None)
        target = f"--cosine {request.cosine}"
    if chosen is None:
        raise InputError(
            f"the embeddings do not lie in fewer directions than their {len(mean)} columns",
            field=target,
            got=f"cosine {means[-1]:.6f} in {ranks[-1]} directions" if ranks else f"{len(mean)} columns",
            remedy="Lower the target, give more data, or send int8 or int4 (wire_dtype).",
        )
    return _basis(mean, spreads, vectors, ranks[chosen]), cosines[:, chosen]


def _cosines(rows: Rows, mean: NDArray[np.float64], vectors: Rows) -> tuple[list[int], Rows]:
    """All ranks that save bytes, and for each the cosine of every row with its projection on so many directions."""
    ranks = list(range(MULTIPLE, min(len(mean) - 1, MAX_RANK) + 1, MULTIPLE))
    along, of_mean = (rows - mean) @ vectors.T, mean @ vectors.T
    at = [rank - 1 for rank in ranks]
    dots = (rows @ mean)[:, None] + np.cumsum(along * (rows @ vectors.T), axis=1)[:, at]
    squares = mean @ mean + np.cumsum(along * (2 * of_mean + along), axis=1)[:, at]
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.sqrt(np.maximum(squares, 0))
    return ranks, np.clip(dots / np.maximum(lengths, 1e-30), -1, 1)


def _basis(mean: NDArray[np.float64], spreads: NDArray[np.float64], vectors: Rows, rank: int) -> TensorBasis:
    """The directions, each scaled by the square root of its spread; that of its coefficients is then the same."""
    gain = np.sqrt(max(float(spreads[0]), 1e-30)) / STRONGEST_SPREAD
    floor = spreads[0] * 1e-6  # a component without any spread would have no direction
    directions = vectors[:rank] * np.sqrt(np.maximum(spreads[:rank], max(floor, 1e-30)))[:, None] * gain
    exponent = int(np.ceil(np.log2(np.abs(directions).max() / np.iinfo(np.int16).max)))
    codes = np.rint(directions / 2.0**exponent).astype(np.int16)
    return TensorBasis(mean.astype(np.float32), codes, exponent)


def _record(bundle: Bundle, graphs: PrecisionSet, record: BasisRecord, content: bytes) -> None:
    """Write the basis and add it to the manifest, in place of the one that it has."""
    file = bundle.path / record.path
    atomic.write_bytes(file, content)
    written = (record_file(bundle.path, file),)
    with edit(bundle.path, unchanged=[bundle.manifest.file(path) for path in graphs.files]) as change:
        change.manifest, change.written = replace(change.manifest, basis=record), written
