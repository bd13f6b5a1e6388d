"""The device's half as a library: open a bundle once, encode conversations into requests."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.processor_arguments import (
    NO_ARGUMENTS,
    ProcessorArguments,
    read_processor_arguments,
)
from qwen3vl_edge.contract.wire.basis import Basis
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, FROM_FP32, PACKINGS, WIRE_DTYPES
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling, pack_media
from qwen3vl_edge.edge_runtime.backends.choice import choose_backend
from qwen3vl_edge.edge_runtime.backends.proven import proven, untested
from qwen3vl_edge.edge_runtime.backends.registry import library_versions, load_backend
from qwen3vl_edge.edge_runtime.bundle_basis import open_basis
from qwen3vl_edge.edge_runtime.cameras.window import Snapshot
from qwen3vl_edge.edge_runtime.client.bandwidth import AUTO, BandwidthEstimate
from qwen3vl_edge.edge_runtime.encoder.batching import EncoderOutput, describe_runs, encode_items
from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, EncoderBackend
from qwen3vl_edge.edge_runtime.inputs.clip_reader import CLIP_SECONDS
from qwen3vl_edge.edge_runtime.inputs.lean.processor import (
    PREPROCESS,
    LeanProcessor,
    choose_lean,
    prepare_lean_prompt,
)
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy, check_no_windows
from qwen3vl_edge.edge_runtime.inputs.messages import Message, clip_sources
from qwen3vl_edge.edge_runtime.inputs.prompt import PreparedMedia, Processor, Prompt, load_processor, prepare_prompt
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits


@dataclass(frozen=True)
class EdgeOptions:
    """How a device runs.

    Attributes:
        backend: a key of `BACKENDS` in `edge_runtime/backends/registry.py`, or "auto": ONNX Runtime on the CPU, and
            on a GPU machine the fastest that runs there (`edge_runtime/backends/choice.py`).
        backend_options: how it is loaded.
        wire_dtype: "fp16"; "fp32" where the last bit matters (parity runs); a packing ("int8", …), which sends
            fewer bytes and changes the embeddings a little (docs/reference/wire.md); or "auto": fp16, fp32 or bf16
            where the values are beyond float16's range, and the packing that changes them least and is sent in time
            where the daemon measured that this is not sent within `wire_target_s`.
            "basis-int8", "basis-int4": coefficients in the bundle's basis, which the server must have too.
        wire_zstd: bodies are compressed, without loss.
        cache: folder of the embedding cache, None for none; cache_bytes: its largest size.
        max_distortion, min_scale: beyond them (enlarged above 1 / `min_scale` too) a picture is encoded by the
            dynamic-shape graph.
        stack: images and clips of a request that have one size share encoder runs.
        preprocess: a key of `PREPROCESS` in `edge_runtime/inputs/lean/processor.py`.
        limits: of the pictures and clips of one conversation.
        exif_orientation: pictures are turned as their EXIF says; False leaves their rows as the sensor wrote them.
        clip_seconds: a key of `CLIP_SECONDS` in `edge_runtime/inputs/clip_reader.py`.
    """

    backend: str = "auto"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    wire_dtype: str = "fp16"
    wire_target_s: float = 1.0
    wire_zstd: bool = False
    max_distortion: float = 0.1
    min_scale: float = 0.7
    cache: Path | None = None
    cache_bytes: int = 2**30
    stack: bool = True
    preprocess: str = "auto"
    limits: MediaLimits = field(default_factory=MediaLimits)
    exif_orientation: bool = True
    clip_seconds: str = "average"

    @property
    def media_limits(self) -> MediaLimits:
        """`limits`, with `exif_orientation`, on which the sizes of pictures depend."""
        return replace(self.limits, exif_orientation=self.exif_orientation)


@dataclass(frozen=True)
class EdgeTimings:
    """Seconds spent on the device.

    Attributes:
        encode: of each item; items that shared a run share its seconds, and a cache hit has those of the lookup.
    """

    preprocess: float
    encode: tuple[float, ...]


@dataclass(frozen=True)
class Prepared:
    """A conversation preprocessed, not yet encoded, and the seconds of preprocessing."""

    prompt: Prompt
    seconds: float


@dataclass(frozen=True)
class EncodedPrompt:
    """A request ready to send, the id of the model that it is for, and its timings."""

    model: str
    request: GenerateRequest
    media: tuple[PreparedMedia, ...]
    timings: EdgeTimings


class Edge:
    """An opened bundle: processor and encoder, used as a context manager.

    Attributes:
        encoder: the loaded backend.
        lean: serves all but cameras; None where the reference preprocesses everything.
        bandwidth: the estimate of that to the server, for `wire_dtype="auto"`.
        basis: whose coefficients are sent, None where the embeddings' rows are sent.
        options: with the backend that was chosen in place of "auto".
        backend_reason: why "auto" chose it; empty where it was named, or there is no GPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EdgeOptions,
        encoder: EncoderBackend,
        lean: LeanProcessor | None,
        bandwidth: BandwidthEstimate | None = None,
        basis: Basis | None = None,
        backend_reason: str = "",
    ) -> None:
        self.bundle = bundle
        self.options = options
        self.basis = basis
        self.backend_reason = backend_reason
        self.bandwidth = bandwidth or BandwidthEstimate()
        self.encoder = encoder
        self.lean = lean
        self.policy = BucketPolicy(
            geometry=bundle.manifest.vision.geometry,
            buckets=encoder.serves.buckets,
            dynamic=encoder.serves.dynamic,
            pixels=bundle.pixels,
            max_distortion=options.max_distortion,
            min_scale=options.min_scale,
            split=True,
        )
        self.cache = None
        if options.cache is not None:
            self.cache = EmbeddingCache(options.cache, options.cache_bytes, self._cache_identity())

    @functools.cached_property
    def processor(self) -> Processor:
        """The reference preprocessing, loaded when it is first needed.

        Raises:
            InputError: its packages are not installed.
        """
        return load_processor(self.bundle.processor_path)

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.encoder.close()

    def encode(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        stream: bool = False,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> EncodedPrompt:
        """Preprocess a conversation, encode its images and clips, and build the request.

        Args:
            messages: Qwen's format.
            sampling: generation parameters; greedy by default.
            stream: request tokens as they are generated.
            mm_processor_kwargs: limits in place of the bundle's, as transformers and vLLM take them: `min_pixels` and
                `max_pixels`, or `size`.

        Raises:
            InputError: media or messages that cannot be used.
            LimitError: more media than `options.limits` allows.
            BucketError: no graph serves a picture.
        """
        prepared = self.prepare(messages, arguments=read_processor_arguments(mm_processor_kwargs))
        return self.embed(prepared, sampling, stream=stream)

    def prepare(
        self,
        messages: Sequence[Message],
        budget: MediaBudget | None = None,
        arguments: ProcessorArguments = NO_ARGUMENTS,
    ) -> Prepared:
        """The first half of `encode`: media fetched and resized, prompt tokenized. One thread at a time.

        Args:
            budget: what the media may cost; as the options say by default.
            arguments: limits in place of the bundle's, as `read_processor_arguments` makes them.

        Raises:
            InputError, LimitError, BucketError: as `encode`.
        """
        started = time.perf_counter()
        clips = any(True for _ in clip_sources(messages))
        if clips and arguments.video.given:
            check_no_windows(messages)
        policy = replace(self.policy, pixels=self.policy.pixels.with_arguments(arguments, clips=clips))
        prompt = self.prompt(messages, policy, budget)
        return Prepared(prompt, time.perf_counter() - started)

    def prompt(self, messages: Sequence[Message], policy: BucketPolicy, budget: MediaBudget | None = None) -> Prompt:
        """Token ids and patches under any policy, from the lean path where it serves the conversation.

        Raises:
            InputError, LimitError, BucketError: as `encode`.
        """
        budget = budget or MediaBudget(self.options.media_limits)
        budget.start()
        if self.lean is not None and self.lean.serves(messages):
            return prepare_lean_prompt(messages, self.lean, policy, budget, self.options.clip_seconds)
        return prepare_prompt(messages, self.processor, policy, budget, self.options.clip_seconds)

    def embed(self, prepared: Prepared, sampling: Sampling | None = None, *, stream: bool = False) -> EncodedPrompt:
        """The second half of `encode`: the encoder, or a cache hit.

        Raises:
            BucketError, InputError: as `encode_items`.
        """
        media, seconds = self._encode_media(prepared.prompt.media)
        request = GenerateRequest(
            model_hash=self.bundle.manifest.model.model_hash,
            input_ids=prepared.prompt.input_ids,
            media=self._pack(media),
            sampling=sampling or Sampling(),
            stream=stream,
            request_id=uuid.uuid4().hex,
        )
        timings = EdgeTimings(prepared.seconds, seconds)
        return EncodedPrompt(self.bundle.manifest.model.id, request, prepared.prompt.media, timings)

    def encode_items(self, items: Sequence[EncoderInput]) -> list[Embeddings]:
        """Embeddings of images and clips, float16 or, where the wire needs it, float32; one thread at a time.

        Raises:
            BucketError: no graphs serve one.
            InputError: a value that the wire's dtype cannot hold.
        """
        return [output.embeddings for output in self._run_encoder(items)]

    def _run_encoder(self, items: Sequence[EncoderInput]) -> list[EncoderOutput]:
        outputs = encode_items(self.encoder, items, stack=self.options.stack)
        return [replace(output, embeddings=output.embeddings.for_wire(self.options.wire_dtype)) for output in outputs]

    def _encode_media(self, items: Sequence[PreparedMedia]) -> tuple[tuple[MediaEmbeddings, ...], tuple[float, ...]]:
        """Each item's embeddings and the seconds they took: from a camera's window, the cache, or an encoder run."""
        media: dict[int, MediaEmbeddings] = {}
        seconds = [0.0] * len(items)
        misses: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            started = time.perf_counter()
            key = self.cache.key(item.grid, item.input.values) if self.cache is not None else str(index)
            if item.window is not None:
                media[index] = self._window_embeddings(item, item.window)
            elif self.cache is not None and key not in misses and (hit := self.cache.get(key)) is not None:
                media[index] = self._media_embeddings(item, hit.for_wire(self.options.wire_dtype), cached=True)
            else:
                misses.setdefault(key, []).append(index)
            seconds[index] = time.perf_counter() - started
        started = time.perf_counter()
        inputs = [items[indices[0]].input for indices in misses.values()]
        outputs = self._run_encoder(inputs)
        seconds_per_patch = (time.perf_counter() - started) / max(sum(item.grid.patches for item in inputs), 1)
        for (key, (first, *repeats)), output in zip(misses.items(), outputs, strict=True):
            if self.cache is not None:
                self.cache.put(key, output.embeddings)
            seconds[first] += seconds_per_patch * items[first].grid.patches
            media[first] = self._media_embeddings(items[first], output.embeddings, output.runs)
            # The same picture again in one request: not encoded again.
            for index in repeats:
                media[index] = self._media_embeddings(items[index], output.embeddings, cached=True)
        return tuple(media[index] for index in range(len(items))), tuple(seconds)

    def _window_embeddings(self, item: PreparedMedia, window: Snapshot) -> MediaEmbeddings:
        encoded_before = window.encoded
        media = self._media_embeddings(item, window.embeddings(self.encode_items))
        return replace(media, origin=media.origin | {"camera": window.camera, "patches_kept": encoded_before})

    def _media_embeddings(
        self, item: PreparedMedia, embeddings: Embeddings, runs: tuple[Grid, ...] = (), *, cached: bool = False
    ) -> MediaEmbeddings:
        origin = self._origin(item) | ({"cached": True} if cached else {})
        if runs not in ((), (item.grid,)):  # it shared a run, or was split
            origin["runs"] = describe_runs(runs)
        return MediaEmbeddings(item.kind, item.grid, embeddings.embeds, embeddings.deepstack, origin)

    def _pack(self, media: tuple[MediaEmbeddings, ...]) -> tuple[MediaEmbeddings, ...]:
        """The embeddings in the wire's dtype, one dtype for all of a request."""
        name = self.options.wire_dtype
        if name == AUTO:
            columns = self.bundle.manifest.vision.out_hidden_size
            wide = any(item.embeds.dtype == np.float32 for item in media)
            size = sum(2 * array.size for item in media for array in item.arrays)
            name = self.bandwidth.choose(size, columns, self.options.wire_target_s, wide=wide)
            if name == "fp32":
                return tuple(_in_float32(item) for item in media)
        packing = BASIS_PACKINGS[name] if self.basis is not None else PACKINGS.get(name)
        return media if packing is None else tuple(pack_media(item, packing, self.basis) for item in media)

    def _cache_identity(self) -> str:
        """All that the embeddings of given pixels depend on."""
        manifest = self.bundle.manifest
        graphs = manifest.set_for(self.encoder.precision)
        files = [graphs.weights, *(graph.path for graph in graphs.graphs)]
        parts = [manifest.model.model_hash, self.encoder.name, self.encoder.precision]
        parts.append("fp32" if self.options.wire_dtype in FROM_FP32 else "fp16")  # packed after the cache
        parts += [*library_versions(self.options.backend), *getattr(self.encoder, "edits", ())]
        parts += [
            manifest.file(path).sha256
            for record in manifest.engines
            if record.library == self.options.backend and record.precision == self.encoder.precision
            for path in record.files
        ]
        return "\n".join([*parts, *(manifest.file(path).sha256 for path in files)])

    def _origin(self, item: PreparedMedia) -> dict[str, Any]:
        reason = untested(self.encoder, item.grid, pixels=item.input.pixels is not None)
        return {
            "native": str(item.choice.native),
            "fixed": item.choice.fixed,
            "scale": round(item.choice.scale, 6),
            "distortion": round(item.choice.distortion, 6),
            "backend": self.encoder.name,
            "precision": self.encoder.precision,
            "input": "patches" if item.input.pixels is None else "uint8",
            **item.decoding,
            **({} if reason is None else {"self_test": reason}),
            **({"backend_reason": self.backend_reason} if self.backend_reason else {}),
        }


def _in_float32(item: MediaEmbeddings) -> MediaEmbeddings:
    embeds, *levels = (array.astype(np.float32, copy=False) for array in item.arrays)
    return replace(item, embeds=embeds, deepstack=tuple(levels), origin=item.origin | {"wire": "fp32"})


def open_edge(
    bundle: str | Path, options: EdgeOptions | None = None, bandwidth: BandwidthEstimate | None = None
) -> Edge:
    """Open and check a bundle, and load its processor and encoder.

    Args:
        bandwidth: the estimate of that to the server, by which `wire_dtype="auto"` sends fewer bytes on slow links.

    Raises:
        BundleError: the bundle is missing, truncated or altered.
        InputError: the backend or its options cannot be used.
    """
    options = options or EdgeOptions()
    if options.wire_dtype not in (AUTO, *WIRE_DTYPES):
        raise InputError("no such wire dtype", field="--wire-dtype", expected=" or ".join(WIRE_DTYPES))
    if options.preprocess not in PREPROCESS:
        raise InputError("no such preprocessing", field="--preprocess", expected=" or ".join(PREPROCESS))
    if options.clip_seconds not in CLIP_SECONDS:
        raise InputError("no such seconds of clips", field="clip_seconds", expected=" or ".join(CLIP_SECONDS))
    opened = open_bundle(bundle)
    basis = open_basis(opened) if options.wire_dtype in BASIS_PACKINGS else None
    choice = choose_backend(options.backend, opened, options.backend_options)
    options = replace(options, backend=choice.name, backend_options=choice.options)
    encoder = load_backend(options.backend, opened, options.backend_options)
    if options.backend_options.self_test:
        encoder = proven(encoder, opened, options.backend, options.backend_options)
    edge = Edge(
        opened, options, encoder, choose_lean(options.preprocess, opened, encoder), bandwidth, basis, choice.reason
    )
    if edge.lean is None:
        _ = edge.processor  # loaded now, so that its errors are raised here
    return edge
