"""The device's half as a library: open a bundle once, turn conversations into requests."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.basis import Basis, read_basis
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, FROM_FP32, PACKINGS, WIRE_DTYPES
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling, pack_media
from qwen3vl_edge.edge_runtime.backends.library_versions import library_versions
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.client.bandwidth import AUTO, BandwidthEstimate
from qwen3vl_edge.edge_runtime.encoder.batching import EncoderInput, EncoderOutput, describe_runs, encode_items
from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, EncoderBackend
from qwen3vl_edge.edge_runtime.inputs.lean.choice import PREPROCESS, choose_lean
from qwen3vl_edge.edge_runtime.inputs.lean.processor import LeanProcessor, prepare_lean_prompt, serves
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy, Message
from qwen3vl_edge.edge_runtime.inputs.prompt import PreparedMedia, Processor, Prompt, load_processor, prepare_prompt


@dataclass(frozen=True)
class EdgeOptions:
    """How a device runs.

    Attributes:
        backend: a key of `BACKENDS` in `edge_runtime/encoder/protocol.py`.
        wire_dtype: "fp16"; "fp32" where the last bit matters (parity runs); a packing ("int8", …), which sends
            fewer bytes and moves the embeddings a little (docs/reference/wire.md); or "auto": fp16 where the
            link brings it within `wire_target_s`, else the packing that moves them least and is there in time.
            "basis-int8", "basis-int4": coefficients in the bundle's basis, which the server must hold too.
        wire_zstd: bodies are compressed, without loss.
        cache: folder of embeddings kept by content, None for none; cache_bytes: how large it may grow.
        max_distortion, min_scale: beyond them a picture goes to the dynamic-shape graph.
        stack: images and clips of a request that have one size share engine runs.
        preprocess: a key of `PREPROCESS` in `edge_runtime/inputs/lean/choice.py`.
    """

    backend: str = "onnxruntime"
    engine: BackendOptions = field(default_factory=BackendOptions)
    wire_dtype: str = "fp16"
    wire_target_s: float = 1.0
    wire_zstd: bool = False
    max_distortion: float = 0.1
    min_scale: float = 0.7
    cache: Path | None = None
    cache_bytes: int = 2**30
    stack: bool = True
    preprocess: str = "auto"


@dataclass(frozen=True)
class EdgeTimings:
    """Seconds spent on the device; what came from the cache took no encoding, and what shared a run its share."""

    preprocess: float
    encode: tuple[float, ...]


@dataclass(frozen=True)
class Prepared:
    """A conversation preprocessed, not yet encoded, and the seconds that took."""

    prompt: Prompt
    seconds: float


@dataclass(frozen=True)
class EncodedPrompt:
    """A request ready to send, the id of the model that it is for, and where the time went."""

    model: str
    request: GenerateRequest
    media: tuple[PreparedMedia, ...]
    timings: EdgeTimings


class Edge:
    """An opened bundle: processor and engine, used as a context manager.

    Attributes:
        lean: serves all but clips; None where the reference serves everything.
        bandwidth: to the server, for `wire_dtype="auto"`.
        basis: what embeddings are sent in, None where their rows are sent.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EdgeOptions,
        engine: EncoderBackend,
        lean: LeanProcessor | None,
        bandwidth: BandwidthEstimate | None = None,
        basis: Basis | None = None,
    ) -> None:
        self.bundle = bundle
        self.options = options
        self.basis = basis
        self.bandwidth = bandwidth or BandwidthEstimate()
        self.engine = engine
        self.lean = lean
        self.policy = BucketPolicy(
            geometry=bundle.manifest.vision.geometry,
            buckets=engine.serves.buckets,
            dynamic=engine.serves.dynamic,
            max_distortion=options.max_distortion,
            min_scale=options.min_scale,
            split=True,
        )
        self.cache = None
        if options.cache is not None:
            self.cache = EmbeddingCache(options.cache, options.cache_bytes, self._identity())

    @functools.cached_property
    def processor(self) -> Processor:
        """The reference, loaded when it is first needed.

        Raises:
            InputError: its packages are not installed.
        """
        return load_processor(self.bundle.processor_path)

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def encode(
        self, messages: Sequence[Message], sampling: Sampling | None = None, *, stream: bool = False
    ) -> EncodedPrompt:
        """Preprocess a conversation, encode its images and clips, and build the request.

        Args:
            messages: Qwen's format.
            sampling: generation parameters; greedy by default.
            stream: ask the server for tokens as they come.

        Raises:
            InputError: media or messages that cannot be used.
            BucketError: no graph serves a picture.
        """
        return self.embed(self.prepare(messages), sampling, stream=stream)

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """The first half of `encode`: media fetched and resized, prompt tokenized. One thread at a time.

        Raises:
            InputError, BucketError: as `encode`.
        """
        started = time.perf_counter()
        prompt = self.prompt(messages, self.policy)
        return Prepared(prompt, time.perf_counter() - started)

    def prompt(self, messages: Sequence[Message], policy: BucketPolicy) -> Prompt:
        """Token ids and patches under any policy, by the lean path where it serves them.

        Raises:
            InputError, BucketError: as `encode`.
        """
        if self.lean is not None and serves(messages):
            return prepare_lean_prompt(messages, self.lean, policy)
        return prepare_prompt(messages, self.processor, policy)

    def embed(self, prepared: Prepared, sampling: Sampling | None = None, *, stream: bool = False) -> EncodedPrompt:
        """The second half of `encode`: the engine, or the cache where it has been here before."""
        media, seconds = self._media(prepared.prompt.media)
        request = GenerateRequest(
            model_hash=self.bundle.manifest.model.model_hash,
            input_ids=prepared.prompt.input_ids,
            media=self._as_sent(media),
            sampling=sampling or Sampling(),
            stream=stream,
            request_id=uuid.uuid4().hex,
        )
        timings = EdgeTimings(prepared.seconds, seconds)
        return EncodedPrompt(self.bundle.manifest.model.id, request, prepared.prompt.media, timings)

    def encode_items(self, items: Sequence[EncoderInput]) -> list[Embeddings]:
        """Images and clips through the engine, as they travel; one thread at a time.

        Raises:
            BucketError: no graphs serve one.
            InputError: a value that the wire's dtype cannot hold.
        """
        return [made.embeddings for made in self._encode_items(items)]

    def _encode_items(self, items: Sequence[EncoderInput]) -> list[EncoderOutput]:
        made = encode_items(self.engine, items, stack=self.options.stack)
        if self.options.wire_dtype not in FROM_FP32:
            return [replace(item, embeddings=item.embeddings.to_fp16()) for item in made]
        return made

    def _media(self, items: Sequence[PreparedMedia]) -> tuple[tuple[MediaEmbeddings, ...], tuple[float, ...]]:
        """Each item's embeddings and the seconds they took: made by a camera, kept in the cache, or encoded now."""
        found: dict[int, MediaEmbeddings] = {}
        seconds = [0.0] * len(items)
        missing: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            started = time.perf_counter()
            key = self.cache.key(item.grid, item.values) if self.cache is not None else str(index)
            if item.window is not None:
                found[index] = self._window_media(item, item.window)
            elif self.cache is not None and key not in missing and (kept := self.cache.get(key)) is not None:
                found[index] = self._as_media(item, kept, cached=True)
            else:
                missing.setdefault(key, []).append(index)
            seconds[index] = time.perf_counter() - started
        started = time.perf_counter()
        work = [items[indices[0]] for indices in missing.values()]
        made = self._encode_items([EncoderInput(item.grid, item.pixel_values, item.pixels) for item in work])
        share = (time.perf_counter() - started) / max(sum(item.grid.patches for item in work), 1)
        for (key, indices), one in zip(missing.items(), made, strict=True):
            if self.cache is not None:
                self.cache.put(key, one.embeddings)
            seconds[indices[0]] += share * items[indices[0]].grid.patches
            first, *others = indices
            found[first] = self._as_media(items[first], one.embeddings, one.runs)
            # The same picture again in one request: not encoded again.
            found.update({index: self._as_media(items[index], one.embeddings, cached=True) for index in others})
        return tuple(found[index] for index in range(len(items))), tuple(seconds)

    def _window_media(self, item: PreparedMedia, window: Snapshot) -> MediaEmbeddings:
        kept = window.encoded
        media = self._as_media(item, window.embeddings(self.encode_items))
        return replace(media, origin=media.origin | {"camera": window.camera, "patches_kept": kept})

    def _as_media(
        self, item: PreparedMedia, made: Embeddings, runs: tuple[Grid, ...] = (), *, cached: bool = False
    ) -> MediaEmbeddings:
        origin = self._origin(item) | ({"cached": True} if cached else {})
        if runs not in ((), (item.grid,)):  # it shared a run, or was split
            origin["runs"] = describe_runs(runs)
        return MediaEmbeddings(item.kind, item.grid, made.embeds, made.deepstack, origin)

    def _as_sent(self, media: tuple[MediaEmbeddings, ...]) -> tuple[MediaEmbeddings, ...]:
        """In the wire's dtype; one for all of a request."""
        name = self.options.wire_dtype
        if name == AUTO:
            columns = self.bundle.manifest.vision.out_hidden_size
            name = self.bandwidth.choose(sum(item.nbytes for item in media), columns, self.options.wire_target_s)
        packing = BASIS_PACKINGS[name] if self.basis is not None else PACKINGS.get(name)
        return media if packing is None else tuple(pack_media(item, packing, self.basis) for item in media)

    def _identity(self) -> str:
        """All that decides what the engine makes of given pixels."""
        manifest = self.bundle.manifest
        graphs = manifest.precision(self.engine.precision)
        files = [graphs.weights, *(graph.path for graph in graphs.graphs)]
        parts = [manifest.model.model_hash, self.engine.name, self.engine.precision]
        parts.append("fp32" if self.options.wire_dtype in FROM_FP32 else "fp16")  # packed when they are sent
        parts += library_versions(self.options.backend)
        parts += [
            manifest.file(path).sha256
            for record in manifest.engines
            if record.library == self.options.backend and record.precision == self.engine.precision
            for path in record.files
        ]
        return "\n".join([*parts, *(manifest.file(path).sha256 for path in files)])

    def _origin(self, item: PreparedMedia) -> dict[str, Any]:
        return {
            "native": str(item.choice.native),
            "fixed": item.choice.fixed,
            "scale": round(item.choice.scale, 6),
            "distortion": round(item.choice.distortion, 6),
            "backend": self.engine.name,
            "precision": self.engine.precision,
            "input": "patches" if item.pixels is None else "uint8",
        }


def open_edge(
    bundle: str | Path, options: EdgeOptions | None = None, bandwidth: BandwidthEstimate | None = None
) -> Edge:
    """Open and check a bundle, and load its processor and engine.

    Args:
        bandwidth: to the server, as the clients' bodies measure it; `wire_dtype="auto"` needs one.

    Raises:
        BundleError: the bundle is missing, truncated or altered.
        InputError: the backend or its options cannot be used.
    """
    options = options or EdgeOptions()
    if options.wire_dtype == AUTO and bandwidth is None:
        remedy = "Name one, or let the daemon choose (wire_dtype in its settings)."
        raise InputError("only the daemon knows its link", field="--wire-dtype", got=AUTO, remedy=remedy)
    if options.wire_dtype not in (AUTO, *WIRE_DTYPES):
        raise InputError("no such wire dtype", field="--wire-dtype", expected=" or ".join(WIRE_DTYPES))
    if options.preprocess not in PREPROCESS:
        raise InputError("no such preprocessing", field="--preprocess", expected=" or ".join(PREPROCESS))
    opened = open_bundle(bundle)
    basis = open_basis(opened) if options.wire_dtype in BASIS_PACKINGS else None
    engine = load_backend(options.backend, opened, options.engine)
    edge = Edge(opened, options, engine, choose_lean(options.preprocess, opened, engine), bandwidth, basis)
    if edge.lean is None:
        _ = edge.processor  # what is wrong with it is told now
    return edge


def open_basis(bundle: Bundle) -> Basis:
    """The basis of a bundle.

    Raises:
        InputError: it has none, or another model's.
    """
    record = bundle.manifest.basis
    if record is None:
        raise InputError(
            "the bundle has no basis for embeddings",
            field="--wire-dtype",
            expected="fp16 or another that needs none",
            remedy=f"Fit one: qwen3vl-edge fit-basis {bundle.path} --data YOUR_PICTURES",
        )
    return read_basis(bundle.path / record.path, bundle.manifest.model.model_hash, record.path)
