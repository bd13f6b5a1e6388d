"""Measure each product's loss by quantization, and exclude the fewest with which a target cosine is reached."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.calibration.stage_runner import Array, StageRunner, Trace
from qwen3vl_edge.calibration.validation import ValidationSample
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.measurements import CalibrationFigure
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.onnx.quantization import Quantization
from qwen3vl_edge.export.onnx.stage_graphs import PATCHES, stage_of

RANKED_ON = 3  # samples on which each product's effect is measured: those with the largest error when all are quantized


@dataclass(frozen=True)
class Effect:
    """Loss of the encoder's outputs with one product quantized alone, worst over outputs and samples.

    Attributes:
        cosine: to the outputs without quantization.
        relative_l2: of the difference.
    """

    product: str
    cosine: float
    relative_l2: float


@dataclass(frozen=True)
class Sensitivity:
    """Products by effect, worst first; `cosine` is reached without `excluded`.

    `effects` is empty where the target is reached with every product quantized.
    """

    effects: tuple[Effect, ...]
    excluded: tuple[str, ...]
    cosine: float
    target: float

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
        self._traces: dict[int, Trace] = {}

    def effect(self, product: str) -> Effect:
        """Quantize one product alone and run from its stage on, on the samples with the largest error."""
        stage = stage_of(product)
        replaced = {stage: self._session(frozenset([product]))}
        apart = []
        for index in self._worst_samples():
            sample = self._samples[index]
            if index not in self._traces:
                self._traces[index] = self._runner.run(sample.input)
            apart.append(self._compare(stage, replaced, sample, self._traces[index].entered[stage]))
        return Effect(product, min(cosine for cosine, _ in apart), max(error for _, error in apart))

    def cosine(self, products: Sequence[str]) -> float:
        """Worst cosine over outputs and samples with these products quantized."""
        return float(np.min([cosine for cosine, _ in self.measure(products)]))

    def measure(self, products: Sequence[str]) -> list[tuple[float, float]]:
        """Worst cosine and relative L2 over the outputs, of each sample, with these products quantized."""
        by_stage: dict[str, set[str]] = {}
        for product in products:
            by_stage.setdefault(stage_of(product), set()).add(product)
        products_by_stage = {stage: frozenset(names) for stage, names in by_stage.items()}
        self._sessions = {key: value for key, value in self._sessions.items() if key in products_by_stage.values()}
        for key in products_by_stage.values():
            if key not in self._sessions:
                self._sessions[key] = self._session(key)
        replaced = {stage: self._sessions[key] for stage, key in products_by_stage.items()}
        apart = [self._compare(PATCHES, replaced, sample, sample.input.pixel_values) for sample in self._samples]
        self._last = {index: cosine for index, (cosine, _) in enumerate(apart)}
        return apart

    def figures(self, products: Sequence[str]) -> tuple[CalibrationFigure, ...]:
        """What these products' quantization costs on the calibration's pictures, and on held-out ones."""
        apart = self.measure(products)
        found = []
        for name, held_out in (("calibration", False), ("held-out", True)):
            own = [pair for pair, sample in zip(apart, self._samples, strict=True) if sample.held_out == held_out]
            if own:
                cosine, error = float(np.min([pair[0] for pair in own])), float(np.max([pair[1] for pair in own]))
                found.append(CalibrationFigure(name, len(own), cosine, error))
        return tuple(found)

    def _worst_samples(self) -> list[int]:
        """RANKED_ON of the samples, by their cosine when it was last measured."""
        return sorted(range(len(self._samples)), key=lambda index: self._last.get(index, 1.0))[:RANKED_ON]

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


def auto_exclude(
    evaluator: Evaluator, products: Sequence[str], target: float, progress: Callable[[str, float], None]
) -> Sensitivity:
    """Rank the products by their effect and exclude the fewest of the worst with which the cosine reaches `target`.

    Raises:
        InputError: the target is not reached even without quantization.
    """
    progress("all products", 0.0)
    if (cosine := evaluator.cosine(products)) >= target:
        return Sensitivity((), (), cosine, target)
    effects = []
    for index, product in enumerate(products):
        progress(f"sensitivity of {product}", 0.1 + 0.7 * index / len(products))
        effects.append(evaluator.effect(product))
    effects.sort(key=lambda effect: effect.cosine)
    ranked = [effect.product for effect in effects]
    low, high = 0, len(ranked)  # without the `low` worst the target is missed; without the `high` worst it is reached
    reached = {0: cosine, high: 1.0}
    while high - low > 1:
        middle = (low + high) // 2
        progress(f"leaving out {middle} of {len(ranked)}", 0.9)
        reached[middle] = evaluator.cosine(ranked[middle:])
        low, high = (low, middle) if reached[middle] >= target else (middle, high)
    if high == len(ranked):
        raise InputError(
            "the target cosine is not reached with any product quantized",
            field="--auto-exclude",
            expected=f"at most what quantizing {ranked[-1]} alone gives, {reached[low]:.6f}",
            got=target,
            remedy="Ask for less, or give 0, which excludes nothing.",
        )
    return Sensitivity(tuple(effects), tuple(ranked[:high]), reached[high], target)
