"""Add a quantized set to a bundle: observe data, choose ranges, write weights and graphs, measure them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from qwen3vl_edge.calibration.headroom import quantized_headroom
from qwen3vl_edge.calibration.histograms import ChannelHistogram
from qwen3vl_edge.calibration.other_kinds import RECIPES
from qwen3vl_edge.calibration.quantized_weights import SourceWeights, source_weights
from qwen3vl_edge.calibration.ranges import activation_range, check_method, scale_of
from qwen3vl_edge.calibration.samples import Selection, bucket_policy, hold_out, list_sources
from qwen3vl_edge.calibration.sensitivity import Evaluator, Sensitivity, auto_exclude
from qwen3vl_edge.calibration.smoothing import Smoothing, Vector, balanced_scores, check_alpha, smoothing_factors
from qwen3vl_edge.calibration.stage_runner import StageRunner
from qwen3vl_edge.calibration.statistics import Statistics, gather
from qwen3vl_edge.calibration.validation import golden_samples, texture_samples, validation_samples
from qwen3vl_edge.calibration.write_set import QuantizedSet, write_set
from qwen3vl_edge.contract.bundle.edit import check_writable
from qwen3vl_edge.contract.bundle.manifest import Manifest, PrecisionSet
from qwen3vl_edge.contract.bundle.measurements import CalibrationRecord
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.precision import PRECISIONS, QUANTIZED_TYPES, quantized_name
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.export.onnx.headroom import float32_layers
from qwen3vl_edge.export.onnx.quantization import Quantization, is_scores, quantizable

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and how.

    Attributes:
        precision: "int8" or "fp8" (e4m3).
        data: a folder of pictures and clips, or messages as JSON lines.
        samples: pictures and clips to observe.
        method: how ranges are chosen, see `calibration/ranges.py`.
        smooth: SmoothQuant's alpha; 0 leaves channels as they are.
        exclude: patterns of products that stay unquantized, such as "blocks.0.*" or "*.attn.scores".
        auto_exclude: cosine that every output must reach, on the calibration's pictures, held-out and drawn ones;
            textures may lose twice as much. The products with the largest error are excluded until then. None takes
            what parity asks of the precision; 0 excludes nothing.
        rest: "fp32" or "fp16" for all that is not quantized; None takes fp32 for int8, which CPUs run fastest,
            and fp16 for fp8, which only GPUs compute.
        seed: of the choice among the data.
        threads: of ONNX Runtime, 0 for its choice.
    """

    precision: str
    data: Path
    samples: int = 256
    method: str = "max"
    smooth: float = 0.5
    exclude: tuple[str, ...] = ()
    auto_exclude: float | None = None
    rest: str | None = None
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True)
class CalibrationResult:
    """The set as the manifest records it, which data was used, and each product's effect with `auto_exclude`."""

    graphs: PrecisionSet
    record: CalibrationRecord
    selection: Selection
    thin_buckets: tuple[str, ...]
    sensitivity: Sensitivity | None
    skipped: bool


def calibrate_bundle(
    path: Path, request: CalibrationRequest, progress: Progress = lambda what, done: None
) -> CalibrationResult:
    """Add a quantized set to a bundle, or replace the one that it has; skipped where nothing changed.

    The manifest is replaced last: after any error the bundle is unchanged. Statistics already gathered
    stay in the bundle, and a second run continues from them.

    Raises:
        InputError: options or data that cannot be used.
        BundleError: the bundle is missing, altered or not writable, or has no set to start from.
    """
    name = _check(request)
    bundle = open_bundle(path)
    base = _base(bundle.manifest, PRECISIONS[name].rest)
    sources, held_out = hold_out(list_sources(request.data, request.seed))
    policy = bucket_policy(bundle, base.precision)
    products = _products(bundle, name)
    weights = source_weights(bundle, base)
    with ExitStack() as stack:
        opened: list[StageRunner] = []

        def runner() -> StageRunner:
            if not opened:
                check_writable(path)
                wide = float32_layers(base.headroom)
                stages = StageRunner(bundle.manifest.vision, weights, base.precision, request.threads, wide)
                opened.append(stack.enter_context(stages))
            return opened[0]

        statistics = gather(bundle, runner, sources, policy, request.samples, _part(progress, 0.0, 0.5))
        key = _key(bundle, base, name, products, request, [statistics.key, *(item.digest for item in held_out)])
        existing = next((item for item in bundle.manifest.precisions if item.precision == name), None)
        thin = tuple(statistics.selection.thin_buckets(bundle.manifest.buckets(base.precision)))
        if existing is not None and existing.calibration is not None and existing.calibration.key == key:
            return CalibrationResult(existing, existing.calibration, statistics.selection, thin, None, skipped=True)
        quantization, smoothing = choose(bundle, products, weights, statistics, request, _part(progress, 0.5, 0.1))
        half = PRECISIONS[name].rest == "fp16"
        observe = statistics.ranges.observe if half else None
        samples = validation_samples(bundle, base, runner(), sources, held_out, policy, observe)
        golden = golden_samples(bundle, base, runner())
        textures = texture_samples(bundle, base, runner(), observe)
        evaluator = Evaluator(runner(), quantization, smoothing, [*samples, *textures])
        sensitivity = None
        if target := _target(request, name):
            sensitivity = auto_exclude(evaluator, (*quantization.input_scales,), target, _part(progress, 0.6, 0.2))
            quantization, smoothing = _without(quantization, smoothing, sensitivity.excluded)
        figures = evaluator.figures(tuple(quantization.input_scales))
        record = replace(_record(key, base, request, statistics, quantization, products), figures=figures)
        vision, ranges = bundle.manifest.vision, statistics.ranges
        headroom = quantized_headroom(vision, ranges, weights, quantization, smoothing) if half else ()
        quantized = QuantizedSet(name, quantization, tuple(smoothing), record, sensitivity, headroom)
        cases, proofs = ([sample.check_case(vision) for sample in found] for found in (samples, golden))
        graphs = write_set(bundle, base, weights, quantized, cases, proofs, _part(progress, 0.8, 0.2))
    assert graphs.calibration is not None
    return CalibrationResult(graphs, graphs.calibration, statistics.selection, thin, sensitivity, skipped=False)


def _check(request: CalibrationRequest) -> str:
    if request.precision not in QUANTIZED_TYPES:
        raise InputError(
            "cannot be calibrated", field="--precision", expected=" or ".join(QUANTIZED_TYPES), got=request.precision
        )
    if request.samples < 1:
        raise InputError("no samples", field="--samples", expected="at least 1", got=request.samples)
    if request.auto_exclude is not None and not 0.0 <= request.auto_exclude < 1.0:
        raise InputError(
            "bad target cosine", field="--auto-exclude", expected="0 to less than 1", got=request.auto_exclude
        )
    check_method(request.method)
    check_alpha(request.smooth)
    rest = request.rest or ("fp16" if request.precision == "fp8" else "fp32")
    if rest not in ("fp32", "fp16"):
        raise InputError("no such precision", field="--rest", expected="fp32 or fp16", got=rest)
    return quantized_name(request.precision, rest)


def _target(request: CalibrationRequest, name: str) -> float:
    """The cosine to reach, 0 for none."""
    return PRECISIONS[name].min_cosine if request.auto_exclude is None else request.auto_exclude


def _base(manifest: Manifest, rest: str) -> PrecisionSet:
    """The set that is quantized: fp32 where there is one."""
    sets = {item.precision: item for item in manifest.precisions}
    for name in ("fp32", "fp16"):
        if name in sets:
            return sets[name]
    raise BundleError(
        "the bundle has no set to calibrate",
        field="precisions",
        expected="fp32 or fp16",
        got=", ".join(sets),
        remedy="Export it again with --precision fp32.",
    )


def _part(progress: Progress, start: float, share: float) -> Progress:
    return lambda what, done: progress(what, start + share * done)


def choose(
    bundle: Bundle,
    products: Sequence[str],
    weights: SourceWeights,
    statistics: Statistics,
    request: CalibrationRequest,
    progress: Progress,
) -> tuple[Quantization, list[Smoothing]]:
    """Input scales and smoothing factors of all products that are not excluded.

    Args:
        products: what the set can quantize.

    Raises:
        InputError: a pattern that matches no product, or nothing left to quantize.
    """
    for pattern in request.exclude:
        if not any(fnmatchcase(product, pattern) for product in products):
            raise InputError(
                f"pattern {pattern!r} matches no product",
                field="--exclude",
                expected=f"such as {products[0]} or blocks.0.*",
            )
    included = [item for item in products if not any(fnmatchcase(item, pattern) for pattern in request.exclude)]
    if not included:
        raise InputError("nothing is left to quantize", field="--exclude")
    scales: dict[str, float] = {}
    smoothing: list[Smoothing] = []
    for index, product in enumerate(included):
        progress(f"range of {product}", index / len(included))
        histogram = statistics.histograms[product]
        factors: Vector = np.ones(len(histogram.largest), np.float32)
        if request.smooth > 0 and (item := _smoothing(bundle, product, weights, histogram, request.smooth)):
            smoothing.append(item)
            factors = np.reciprocal(item.factors)
        limit = activation_range(histogram, factors, request.method, request.precision)
        scales[product] = scale_of(limit, request.precision)
    return Quantization(request.precision, scales), smoothing


def _products(bundle: Bundle, name: str) -> tuple[str, ...]:
    """What a set can quantize: attention scores only of `int8`, which CPUs run.

    TensorRT has one fused kernel for attention in half precision, and does not use it if half of its products are
    quantized.
    """
    return quantizable(bundle.manifest.vision, scores=name == "int8")


def _smoothing(
    bundle: Bundle, product: str, weights: SourceWeights, histogram: ChannelHistogram, alpha: float
) -> Smoothing | None:
    spec = bundle.manifest.vision
    if is_scores(product):
        return balanced_scores(spec, product, histogram)
    return smoothing_factors(spec, product, histogram, weights.largest_by_input(product), alpha)


def _without(
    quantization: Quantization, smoothing: Sequence[Smoothing], excluded: Sequence[str]
) -> tuple[Quantization, list[Smoothing]]:
    scales = {name: scale for name, scale in quantization.input_scales.items() if name not in excluded}
    return replace(quantization, input_scales=scales), [item for item in smoothing if item.product not in excluded]


def _key(
    bundle: Bundle,
    base: PrecisionSet,
    name: str,
    products: Sequence[str],
    request: CalibrationRequest,
    data: Sequence[str],
) -> str:
    document = {
        "base": bundle.manifest.file(base.weights).sha256,
        "graphs": [bundle.manifest.file(graph.path).sha256 for graph in base.graphs],
        "precision": name,
        "products": products,
        "data": data,
        "method": request.method,
        "smooth": request.smooth,
        "exclude": sorted(request.exclude),
        "auto_exclude": _target(request, name),
        "other_kinds": RECIPES,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _record(
    key: str,
    base: PrecisionSet,
    request: CalibrationRequest,
    statistics: Statistics,
    quantization: Quantization,
    products: Sequence[str],
) -> CalibrationRecord:
    return CalibrationRecord(
        key=key,
        base=base.precision,
        method=request.method,
        samples=statistics.samples,
        per_bucket=dict(statistics.selection.per_bucket),
        smooth=request.smooth or None,
        quantized=tuple(quantization.input_scales),
        excluded=tuple(product for product in products if product not in quantization.input_scales),
    )
