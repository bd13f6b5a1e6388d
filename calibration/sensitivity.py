"""Measure each product's loss by quantization, and exclude the fewest with which a target cosine is reached."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.calibration.stage_runner import Array, StageRunner, Trace
from qwen3vl_edge.calibration.validation import KINDS, OTHER_KINDS, ValidationSample
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.measurements import CalibrationFigure
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.onnx.quantization import Quantization
from qwen3vl_edge.export.onnx.stage_graphs import PATCHES, stage_of

RANKED_ON = 3  # samples on which each product's effect is measured: those with the largest error when all are quantized
RANKED_ON_OTHER_KINDS = 2
OTHER_KINDS_LOSS = 2.0  # 1 - cosine of other kinds may be so many times that of the data's own: textures are extremes


@dataclass(frozen=True)
class Effect:
    """Loss of the encoder's outputs with one product quantized alone, worst over outputs and samples.

    Attributes:
        cosine: to the outputs without quantization, on pictures of the data and drawn ones.
        relative_l2: of the difference.
        other_kinds: the cosine on textures.
    """

    product: str
    cosine: float
    relative_l2: float
    other_kinds: float


@dataclass(frozen=True)
class Sensitivity:
    """Products by effect, worst first on pictures of the data; the cosines are reached without `excluded`.

    `effects` is empty where the targets are reached with every product quantized.

    Attributes:
        cosine: of the data's pictures, which reaches `target`.
        other_kinds: of other kinds, which reaches `other_kinds_target`.
    """

    effects: tuple[Effect, ...]
    excluded: tuple[str, ...]
    cosine: float
    target: float
    other_kinds: float
    other_kinds_target: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


class Evaluator:
    """The encoder with any subset of its products quantized, by stages; unchanged sessions are reused."""

    def __init__(
        self,
        runner: StageRunner,
        quantization: Quantization,
        smoothing: Sequence[Smoothing],
        samples: Sequence[ValidationSample],
    ) -> None:
        self._runner, self._samples = runner, samples
        self._quantization = quantization
        self._smoothing = {item.product: item for item in smoothing}
        self._sessions: dict[frozenset[str], Any] = {}
        self._last: dict[int, float] = {}
        self._measured: dict[frozenset[str], dict[int, tuple[float, float]]] = {}  # by the products, then the sample
        self._traces: dict[int, Trace] = {}

    def effect(self, product: str) -> Effect:
        """Quantize one product alone and run from its stage on, on the samples with the largest error."""
        stage = stage_of(product)
        replaced = {stage: self._session(frozenset([product]))}
        apart: list[list[tuple[float, float]]] = [[], []]
        for other_kinds, count in ((False, RANKED_ON), (True, RANKED_ON_OTHER_KINDS)):
            for index in self._by_error(other_kinds)[:count]:
                sample = self._samples[index]
                if index not in self._traces:
                    self._traces[index] = self._runner.run(sample.input)
                distances = self._compare(stage, replaced, sample, self._traces[index].entered[stage])
                apart[other_kinds].append(distances)
        cosines = [min((cosine for cosine, _ in pairs), default=1.0) for pairs in apart]
        return Effect(product, cosines[0], max((error for _, error in apart[0]), default=0.0), cosines[1])

    def cosines(self, products: Sequence[str]) -> tuple[float, float]:
        """Worst cosine over outputs and samples with these products quantized: of the data, and of other kinds."""
        apart = self.measure(products)
        own, other = (
            [apart[index][0] for index in self._by_error(other_kinds)] or [1.0] for other_kinds in (False, True)
        )
        return float(np.min(own)), float(np.min(other))

    def reach(self, products: Sequence[str], floors: tuple[float, float], *, only_other_kinds: bool = False) -> bool:
        """Whether every output of every sample has its floor; the samples that were worst are asked first.

        Args:
            floors: cosine of the data's pictures, and of other kinds.
        """
        asked = self._by_error(True) + ([] if only_other_kinds else self._by_error(False))
        return all(
            self._distances(products, index)[0] >= floors[self._samples[index].pictures == OTHER_KINDS]  # false of NaN
            for index in asked
        )

    def measure(self, products: Sequence[str]) -> list[tuple[float, float]]:
        """Worst cosine and relative L2 over the outputs, of each sample, with these products quantized."""
        apart = [self._distances(products, index) for index in range(len(self._samples))]
        self._last = {index: cosine for index, (cosine, _) in enumerate(apart)}
        return apart

    def _distances(self, products: Sequence[str], index: int) -> tuple[float, float]:
        """Of one sample, measured once for each set of products."""
        measured = self._measured.setdefault(frozenset(products), {})
        if index not in measured:
            sample = self._samples[index]
            measured[index] = self._compare(PATCHES, self._replaced(products), sample, sample.input.pixel_values)
        return measured[index]

    def _replaced(self, products: Sequence[str]) -> dict[str, Any]:
        """Sessions by stage with these products quantized; those of the last set are kept where they are the same."""
        by_stage: dict[str, set[str]] = {}
        for product in products:
            by_stage.setdefault(stage_of(product), set()).add(product)
        products_by_stage = {stage: frozenset(names) for stage, names in by_stage.items()}
        self._sessions = {key: value for key, value in self._sessions.items() if key in products_by_stage.values()}
        for key in products_by_stage.values():
            if key not in self._sessions:
                self._sessions[key] = self._session(key)
        return {stage: self._sessions[key] for stage, key in products_by_stage.items()}

    def figures(self, products: Sequence[str]) -> tuple[CalibrationFigure, ...]:
        """What these products' quantization costs on each of `KINDS` of pictures."""
        apart = self.measure(products)
        found = []
        for name in KINDS:
            own = [pair for pair, sample in zip(apart, self._samples, strict=True) if sample.pictures == name]
            if own:
                cosine, error = float(np.min([pair[0] for pair in own])), float(np.max([pair[1] for pair in own]))
                found.append(CalibrationFigure(name, len(own), cosine, error))
        return tuple(found)

    def _by_error(self, other_kinds: bool) -> list[int]:
        """Samples of the data or of other kinds, worst first, by their cosine when all were last measured."""
        own = [index for index, item in enumerate(self._samples) if (item.pictures == OTHER_KINDS) == other_kinds]
        return sorted(own, key=lambda index: self._last.get(index, 1.0))

    def _session(self, products: frozenset[str]) -> Any:
        stage = stage_of(next(iter(products)))
        scales = {name: self._quantization.input_scales[name] for name in sorted(products)}
        smoothing = [self._smoothing[name] for name in sorted(products) if name in self._smoothing]
        return self._runner.quantized(stage, replace(self._quantization, input_scales=scales), smoothing)

    def _compare(
        self, first: str, replaced: dict[str, Any], sample: ValidationSample, entered: Array
    ) -> tuple[float, float]:
        """Worst cosine and relative L2 over the outputs, with what enters the stage `first`."""
        trace = self._runner.resume(sample.input.grid, first, entered, replaced=replaced)
        apart = [distance(actual, sample.outputs[name]) for name, actual in trace.outputs.items()]
        # numpy's minimum and maximum return NaN if there is one, and every comparison with it fails.
        return float(np.min([item.cosine for item in apart])), float(np.max([item.relative_l2 for item in apart]))


def other_kinds_floor(target: float) -> float:
    """The cosine that other kinds of pictures must reach where the data's own must reach `target`."""
    return round(1 - OTHER_KINDS_LOSS * (1 - target), 12)


def auto_exclude(
    evaluator: Evaluator, products: Sequence[str], target: float, progress: Callable[[str, float], None]
) -> Sensitivity:
    """Rank the products by their effect and exclude the fewest of the worst with which the cosine reaches `target`.

    What other kinds of pictures lose is judged first, with `OTHER_KINDS_LOSS` and by a ranking of their own: the
    products that textures need are others than those that the data's pictures need.

    Raises:
        InputError: the target is not reached even without quantization.
    """
    floors = target, other_kinds_floor(target)
    progress("all products", 0.0)
    cosine, other_kinds = evaluator.cosines(products)
    if cosine >= floors[0] and other_kinds >= floors[1]:
        return Sensitivity((), (), cosine, target, other_kinds, floors[1])
    effects = []
    for index, product in enumerate(products):
        progress(f"sensitivity of {product}", 0.1 + 0.7 * index / len(products))
        effects.append(evaluator.effect(product))
    excluded: list[str] = []
    for only_other_kinds in (True, False):
        effects.sort(key=lambda effect: effect.other_kinds if only_other_kinds else effect.cosine)
        ranked = [effect.product for effect in effects if effect.product not in excluded]
        excluded += _fewest(evaluator, ranked, floors, progress, only_other_kinds=only_other_kinds)
    left = [product for product in products if product not in excluded]
    cosine, other_kinds = evaluator.cosines(left)
    return Sensitivity(tuple(effects), tuple(excluded), cosine, target, other_kinds, floors[1])


def _fewest(
    evaluator: Evaluator,
    ranked: Sequence[str],
    floors: tuple[float, float],
    progress: Callable[[str, float], None],
    *,
    only_other_kinds: bool,
) -> Sequence[str]:
    """The fewest of the first of `ranked` without which the floors are reached.

    Raises:
        InputError: they are not reached with the last alone.
    """
    low, high = -1, len(ranked)  # without the `low` worst a floor is missed; without the `high` worst they are reached
    middle = 0
    while high - low > 1:
        progress(f"leaving out {middle} of {len(ranked)}", 0.9)
        reached = evaluator.reach(ranked[middle:], floors, only_other_kinds=only_other_kinds)
        low, high = (low, middle) if reached else (middle, high)
        middle = (low + high) // 2
    if high == len(ranked):
        own, other_kinds = evaluator.cosines(ranked[-1:])
        least = min(own, 1 - (1 - other_kinds) / OTHER_KINDS_LOSS)
        kind = "on textures, which may lose twice as much, " if own >= floors[0] else ""
        raise InputError(
            f"the target cosine is not reached {kind}with any product quantized",
            field="--auto-exclude",
            expected=f"at most what quantizing {ranked[-1]} alone gives, {least:.6f}",
            got=floors[0],
            remedy="Ask for less, or give 0, which excludes nothing.",
        )
    return ranked[:high]
