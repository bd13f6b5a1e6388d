"""Histograms of every product's input over the calibration data: gathered once, stored, reused for any method."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.calibration.histograms import BINS, ChannelHistogram
from qwen3vl_edge.calibration.samples import Selection, Source, stream_samples
from qwen3vl_edge.calibration.stage_runner import StageRunner
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.export.onnx.headroom import LayerRanges
from qwen3vl_edge.export.onnx.quantization import quantizable
from qwen3vl_edge.export.onnx.stage_graphs import product_width

STATISTICS_NAME = "calibration/statistics.npz"
_SAVE_EVERY = 30.0  # seconds of work that a crash may cost


@dataclass
class Statistics:
    """Histograms by product, and the data that they count.

    Attributes:
        key: of the model, the data, its order and the number of samples.
        ranges: of every layer, also of those that are not quantized.
        samples: pictures and clips counted.
        complete: False for a pass that was interrupted after `done` sources.
    """

    key: str
    histograms: dict[str, ChannelHistogram]
    selection: Selection
    ranges: LayerRanges = field(default_factory=LayerRanges)
    samples: int = 0
    done: int = 0
    complete: bool = False

    def save(self, path: Path) -> None:
        """Write atomically, as numpy's compressed archive; no pickle."""
        about = {
            "key": self.key,
            "samples": self.samples,
            "done": self.done,
            "complete": self.complete,
            "used": self.selection.used,
            "skipped": self.selection.skipped,
            "per_bucket": dict(self.selection.per_bucket),
        }
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for name, histogram in self.histograms.items():
            arrays[f"{name}.counts"], arrays[f"{name}.largest"] = histogram.counts, histogram.largest
            arrays[f"{name}.rows"] = np.int64(histogram.rows)
        for layer in self.ranges.inputs:
            arrays[f"{layer}.reads"], arrays[f"{layer}.gives"] = self.ranges.inputs[layer], self.ranges.outputs[layer]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        atomic.write_bytes(path, buffer.getbuffer())


def load_statistics(path: Path) -> Statistics | None:
    """Statistics of an earlier pass; None where there are none, or none of this layout."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            names = [name.removesuffix(".counts") for name in archive.files if name.endswith(".counts")]
            ranges = LayerRanges(*(_arrays(archive, kind) for kind in (".reads", ".gives")))
            histograms = {
                name: ChannelHistogram(
                    archive[f"{name}.counts"], archive[f"{name}.largest"], int(archive[f"{name}.rows"])
                )
                for name in names
            }
        selection = Selection(about["used"], [tuple(item) for item in about["skipped"]])
        selection.per_bucket.update(about["per_bucket"])
        counts = about["samples"], about["done"], about["complete"]
        statistics = Statistics(about["key"], histograms, selection, ranges, *counts)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    fits = all(histogram.counts.shape[1:] == (BINS,) for histogram in statistics.histograms.values())
    return statistics if fits else None


def _arrays(archive: Any, kind: str) -> dict[str, Any]:
    return {name.removesuffix(kind): archive[name] for name in archive.files if name.endswith(kind)}


def statistics_key(bundle: Bundle, sources: Sequence[Source], policy: BucketPolicy, samples: int) -> str:
    """sha256 of all inputs of the statistics."""
    parts = [bundle.manifest.model.model_hash, repr(policy), str(samples), str(BINS), "ranges"]
    parts += quantizable(bundle.manifest.vision)
    parts += [f"{source.name} {source.digest}" for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def gather(
    bundle: Bundle,
    runner: Callable[[], StageRunner],
    sources: Sequence[Source],
    policy: BucketPolicy,
    samples: int,
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> Statistics:
    """Run the encoder over the data, continue an interrupted pass, or load the statistics of a complete one.

    The statistics are in the bundle, at STATISTICS_NAME; they are not a part of it: a device needs none.

    Raises:
        InputError: nothing of the data could be read.
    """
    path = bundle.path / STATISTICS_NAME
    key = statistics_key(bundle, sources, policy, samples)
    statistics = load_statistics(path)
    if statistics is None or statistics.key != key:
        statistics = _empty(key, bundle.manifest.vision)
    if not statistics.complete:
        _observe(statistics, path, bundle, runner(), sources, policy, samples, progress)
    if not statistics.samples:
        first = statistics.selection.skipped[0]
        raise InputError(
            f"none of {len(sources)} items in the calibration data can be used",
            field="--data",
            got=f"{first[0]}: {first[1]}",
        )
    return statistics


def _empty(key: str, spec: VisionSpec) -> Statistics:
    histograms = {name: ChannelHistogram.empty(product_width(spec, name)) for name in quantizable(spec)}
    return Statistics(key, histograms, Selection())


def _observe(
    statistics: Statistics,
    path: Path,
    bundle: Bundle,
    stages: StageRunner,
    sources: Sequence[Source],
    policy: BucketPolicy,
    samples: int,
    progress: Callable[[str, float], None],
) -> None:
    def observe(layer: str, inputs: Any, largest: Any) -> None:
        if layer in statistics.histograms:
            statistics.histograms[layer].add(inputs)
        statistics.ranges.observe(layer, inputs, largest)

    saved = time.monotonic()
    begun, remaining = statistics.done, samples - statistics.samples
    for index, items in stream_samples(sources[begun:], bundle, policy, statistics.selection, remaining):
        progress(f"observing {items[0].source}", statistics.samples / min(samples, len(sources)))
        for item in items:
            stages.run(item.input, observe)
        statistics.samples += len(items)
        statistics.done = begun + index + 1
        if time.monotonic() - saved > _SAVE_EVERY:
            statistics.save(path)
            saved = time.monotonic()
    statistics.complete = True
    statistics.save(path)
