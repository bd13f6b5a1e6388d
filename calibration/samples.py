"""The pictures and clips to calibrate on, preprocessed as on the device."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import BucketError, InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import bundle_serves
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.messages_file import read_conversations
from qwen3vl_edge.edge_runtime.inputs.prompt import Processor, load_processor, prepare_prompt

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLIPS = (".mp4", ".mkv", ".mov", ".avi", ".webm")
HELD_OUT = 8  # sources
FEW = 8  # fewer samples than this in a bucket are named in a warning


@dataclass(frozen=True)
class Source:
    """One conversation of the calibration data; a file of a folder is one about that file.

    Attributes:
        name: the file, relative to the folder, or the conversation's id.
        digest: sha256 of what it is read from, so that resumed statistics are of the same data.
    """

    name: str
    messages: list[Message]
    digest: str


@dataclass(frozen=True)
class Sample:
    """One picture or clip of the data, and the name of the source that it came from."""

    source: str
    input: EncoderInput


@dataclass
class Selection:
    """Which of the data is used.

    Attributes:
        used: sources that gave samples, in order.
        skipped: (name, reason) of what could not be read.
        per_bucket: samples by the grid that they were encoded at.
    """

    used: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    per_bucket: Counter[str] = field(default_factory=Counter)

    def thin_buckets(self, buckets: Sequence[Grid]) -> list[str]:
        """Fixed buckets with fewer samples than FEW."""
        return [str(grid) for grid in buckets if self.per_bucket[str(grid)] < FEW]


def list_sources(data: Path, seed: int) -> list[Source]:
    """Everything to choose from, in an order that depends on the seed alone.

    Args:
        data: a folder with pictures and clips, searched recursively, or JSON lines with `messages`.

    Raises:
        InputError: missing, or nothing in it.
    """
    sources = _folder(data) if data.is_dir() else _conversations(data)
    random.Random(seed).shuffle(sources)
    return sources


def _folder(data: Path) -> list[Source]:
    files = sorted(file for file in data.rglob("*") if file.suffix.lower() in IMAGES + CLIPS and file.is_file())
    if not files:
        raise InputError(
            f"no pictures or clips in {data}", field="--data", expected="files named " + " ".join(IMAGES + CLIPS)
        )
    sources = []
    for file in files:
        kind = "video" if file.suffix.lower() in CLIPS else "image"
        messages = [{"role": "user", "content": [{"type": kind, kind: str(file)}]}]
        name = file.relative_to(data).as_posix()
        stat = file.stat()
        digest = hashlib.sha256(f"{name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
        sources.append(Source(name, messages, digest))
    return sources


def _conversations(data: Path) -> list[Source]:
    if not data.exists():
        raise InputError(
            f"no such file or folder: {data}",
            field="--data",
            expected="a folder of pictures, or messages as JSON lines",
        )
    return [
        Source(name, messages, hashlib.sha256(repr(messages).encode()).hexdigest())
        for name, messages in read_conversations(data, "--data")
    ]


def hold_out(sources: Sequence[Source]) -> tuple[Sequence[Source], Sequence[Source]]:
    """The sources to observe, and those that quantization is only measured with: an eighth, and of many HELD_OUT."""
    count = min(HELD_OUT, len(sources) // 8)
    return sources[: len(sources) - count], sources[len(sources) - count :]


def bucket_policy(bundle: Bundle, precision: str | None) -> BucketPolicy:
    """How an edge with this bundle chooses buckets."""
    serves = bundle_serves(bundle, precision)
    return BucketPolicy(bundle.manifest.vision.geometry, serves.buckets, serves.dynamic, bundle.pixels)


def stream_samples(
    sources: Sequence[Source], bundle: Bundle, policy: BucketPolicy, selection: Selection, limit: int
) -> Iterator[tuple[int, list[Sample]]]:
    """Samples with the index of their source, one source in memory at a time, until `limit` samples were read.

    Sources that cannot be read are recorded in `selection` and skipped.
    """
    processor: Processor | None = None
    count = 0
    for index, source in enumerate(sources):
        if count >= limit:
            return
        processor = processor or load_processor(bundle.processor_path)
        try:
            prompt = prepare_prompt(source.messages, processor, policy)
        except (InputError, BucketError) as error:
            selection.skipped.append((source.name, error.message))
            continue
        samples = [Sample(source.name, item.input) for item in prompt.media]
        if not samples:
            selection.skipped.append((source.name, "no picture or clip in it"))
            continue
        samples = samples[: limit - count]
        count += len(samples)
        selection.used.append(source.name)
        selection.per_bucket.update(str(sample.input.grid) for sample in samples)
        yield index, samples
