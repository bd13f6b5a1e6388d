"""Channels far larger than the others, as trained towers have them: what they cost in int8, and what brings it back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.calibration.calibrate import CalibrationRequest, CalibrationResult, calibrate_bundle
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.backends.onnxruntime import int8_products_saturate
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.export.onnx.quantization import quantizable
from tests.support.encoders.export_models import graph_of, picture, run_graph
from tests.support.encoders.planted_outliers import plant_outliers


@pytest.fixture(scope="module")
def planted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    model = plant_outliers(reference, folder / "model")
    export_bundle(str(model), folder / "bundle", image_buckets="128x128,128x160", video_buckets="8x96x96")
    return folder / "bundle"


@pytest.fixture
def fresh(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "bundle"))


def worst(result: CalibrationResult) -> float:
    return min(row.cosine for graph in result.graphs.graphs for row in graph.parity)


def test_the_function_is_unchanged(planted: Path, bundle: Path) -> None:
    pixels = {"pixels": picture(128, 160)}
    outputs, expected = (
        run_graph(opened, graph_of(opened, "image_uint8", Grid(1, 8, 10), "fp32"), pixels)
        for opened in (open_bundle(planted), open_bundle(bundle))
    )
    for one, other in zip(outputs, expected, strict=True):
        assert distance(one, other).relative_l2 < 1e-4


def test_smoothing_and_exclusion_bring_the_encoder_back(fresh: Path, calibration_data: Path) -> None:
    """Plain int8 loses it; smoothing alone nearly has it; with the few worst products left out it holds."""
    request = CalibrationRequest("int8", calibration_data, samples=96, auto_exclude=0.0)
    plain = calibrate_bundle(
        fresh, CalibrationRequest("int8", calibration_data, samples=96, smooth=0.0, auto_exclude=0.0)
    )
    assert worst(plain) < 0.95
    smoothed = calibrate_bundle(fresh, request)
    saturating = int8_products_saturate()  # then ONNX Runtime adds an error that smoothing cannot take away
    assert worst(smoothed) > (0.98 if saturating else 0.997)
    held = calibrate_bundle(fresh, CalibrationRequest("int8", calibration_data, samples=96))
    assert worst(held) >= 0.999
    assert held.sensitivity is not None
    assert 0 < len(held.record.excluded) <= (24 if saturating else 6)
    unsmoothed = CalibrationRequest("int8", calibration_data, samples=96, smooth=0.0, auto_exclude=0.999)
    excluded = calibrate_bundle(fresh, unsmoothed)
    assert worst(excluded) >= 0.999
    assert len(excluded.record.excluded) > (1 if saturating else 2) * len(held.record.excluded)


def test_the_ranking_is_kept_in_the_bundle(fresh: Path, calibration_data: Path) -> None:
    request = CalibrationRequest("int8", calibration_data, samples=16, smooth=0.0, auto_exclude=0.99)
    result = calibrate_bundle(fresh, request)
    bundle = open_bundle(fresh)  # the file is recorded and hashed
    record = bundle.manifest.precision("int8").calibration
    assert record is not None
    assert record.sensitivity is not None
    kept = json.loads((fresh / record.sensitivity).read_text())
    ranked = [effect["product"] for effect in kept["effects"]]
    assert set(ranked) == set(quantizable(bundle.manifest.vision))
    cosines = [effect["cosine"] for effect in kept["effects"]]
    assert cosines == sorted(cosines)
    assert kept["cosine"] >= kept["target"] == 0.99
    assert kept["other_kinds"] >= kept["other_kinds_target"] == 0.98
    assert sorted(kept["excluded"]) == sorted(result.record.excluded) == sorted(record.excluded)
    excluded = kept["excluded"]  # the worst on other kinds of pictures, then the worst of the rest on the data's own
    by_other_kinds = [effect["product"] for effect in sorted(kept["effects"], key=lambda item: item["other_kinds"])]
    first = next((index for index, name in enumerate(excluded) if name != by_other_kinds[index]), len(excluded))
    rest = [name for name in ranked if name not in excluded[:first]]
    assert excluded[first:] == rest[: len(excluded) - first]


@pytest.mark.parametrize("smooth", [0.3, 0.5, 0.9])
def test_smoothing_alone_changes_nothing(planted: Path, tmp_path: Path, calibration_data: Path, smooth: float) -> None:
    """Folded into norms and values and out of the weights that read them: with nothing quantized, the same outputs."""
    from qwen3vl_edge.calibration.calibrate import choose
    from qwen3vl_edge.calibration.quantized_weights import source_weights, write_quantized_weights
    from qwen3vl_edge.calibration.samples import bucket_policy, list_sources
    from qwen3vl_edge.calibration.stage_runner import StageRunner
    from qwen3vl_edge.calibration.statistics import gather
    from qwen3vl_edge.export.onnx.encoder_graph import dynamic_graph
    from qwen3vl_edge.export.onnx.quantization import NOT_QUANTIZED

    bundle = open_bundle(Path(shutil.copytree(planted, tmp_path / "bundle")))
    spec, base = bundle.manifest.vision, bundle.manifest.precision("fp32")
    weights, policy = source_weights(bundle, base), bucket_policy(bundle, "fp32")
    pixels = np.random.default_rng(3).standard_normal((80, spec.patch_values), dtype=np.float32)
    with StageRunner(spec, weights, "fp32") as runner:
        statistics = gather(bundle, lambda: runner, list_sources(calibration_data, 0), policy, 4)
        request = CalibrationRequest("int8", calibration_data, smooth=smooth)
        _, smoothing = choose(bundle, quantizable(spec), weights, statistics, request, lambda what, done: None)
        assert len(smoothing) == 4 * spec.depth + 1 + len(spec.deepstack_visual_indexes)
        stored = write_quantized_weights(weights, NOT_QUANTIZED, smoothing, "fp32", tmp_path / "weights.bin")
        expected = runner.run(EncoderInput(Grid(1, 8, 10), pixels)).outputs
    graph = dynamic_graph(spec, "fp32", stored, "weights.bin")
    (tmp_path / "dynamic.onnx").write_bytes(graph.model.SerializeToString())
    import onnxruntime as ort

    from tests.support.encoders.export_models import dynamic_tables

    session = ort.InferenceSession(tmp_path / "dynamic.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"pixel_values": pixels, **dynamic_tables(bundle, Grid(1, 8, 10))})
    for name, output in zip(spec.output_names, outputs, strict=True):
        assert distance(output, expected[name]).relative_l2 < 2e-5
