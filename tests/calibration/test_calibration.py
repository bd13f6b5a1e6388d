"""A calibrated bundle: what it holds, what it costs, and that nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qwen3vl_edge.calibration import statistics as statistics_module
from qwen3vl_edge.calibration.calibrate import CalibrationRequest, calibrate_bundle
from qwen3vl_edge.calibration.histograms import ChannelHistogram
from qwen3vl_edge.calibration.quantized_weights import quantize_rows, source_weights
from qwen3vl_edge.calibration.samples import Selection, Source, bucket_policy, list_sources, stream_samples
from qwen3vl_edge.calibration.stage_runner import StageRunner
from qwen3vl_edge.calibration.statistics import STATISTICS_NAME, gather, load_statistics
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.edge_runtime.backends.onnxruntime import int8_products_saturate
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.onnx.quantization import quantizable
from qwen3vl_edge.export.onnx.weights import stored_in_graphs
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split, score
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import open_both
from tests.support.encoders.export_models import graph_of, picture, run_graph
from tests.support.photographs import photographs
from tests.support.run_cli import run_process

QUANTIZED = ("int8", "int8-fp16", "fp8")
FEW = 16


@pytest.fixture
def fresh(few_buckets: Path, tmp_path: Path) -> Path:
    """A bundle of one test's own."""
    return Path(shutil.copytree(few_buckets, tmp_path / "reference"))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_quantized_set_has_the_graphs_of_its_base(calibrated: Path, precision: str) -> None:
    bundle = open_bundle(calibrated)  # hashes every file
    base, made = bundle.manifest.precision("fp32"), bundle.manifest.precision(precision)
    assert [(graph.kind, graph.bucket) for graph in made.graphs] == [
        (graph.kind, graph.bucket) for graph in base.graphs
    ]
    assert len(list((bundle.path / made.weights).parent.glob("*.bin"))) == 1
    assert made.calibration is not None
    assert made.calibration.samples == 128
    assert made.calibration.quantized == quantizable(bundle.manifest.vision, scores=precision == "int8")
    outputs = {spec.dtype for graph in made.graphs for spec in graph.outputs}
    assert outputs == {"float16" if PRECISIONS[precision].rest == "fp16" else "float32"}
    sizes = {item.precision: bundle.manifest.file(item.weights).bytes for item in bundle.manifest.precisions}
    assert sizes[precision] < sizes["fp16"] < sizes["fp32"]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantization_is_explicit_and_symmetric(calibrated: Path, precision: str) -> None:
    bundle = open_bundle(calibrated)
    for graph in bundle.manifest.precision(precision).graphs:
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        constants = {item.name: item for item in model.graph.initializer}
        quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        linears = len(quantizable(bundle.manifest.vision, scores=False))
        queries_and_keys = 2 * bundle.manifest.vision.depth if precision == "int8" else 0
        assert len(quantizers) == linears + queries_and_keys
        for node in quantizers:
            kind = constants[node.input[2]].data_type
            assert kind == (onnx.TensorProto.FLOAT8E4M3FN if precision == "fp8" else onnx.TensorProto.INT8)
            assert not any(constants[node.input[2]].raw_data)  # zero point 0, which TensorRT takes alone
        dequantizers = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
        assert dequantizers == len(quantizers) + linears  # and each linear's weight


def test_onnxruntime_multiplies_integers(calibrated: Path, tmp_path: Path) -> None:
    """Every quantized product, and not a float product between conversions."""
    bundle = open_bundle(calibrated)
    graph = graph_of(bundle, "fixed", Grid(1, 8, 8), "int8")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    disabled = set(ORT_DISABLED_OPTIMIZERS["int8"])
    ort.InferenceSession(
        str(bundle.graph_path(graph)), settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == len(quantizable(bundle.manifest.vision))
    assert "DequantizeLinear" not in kinds


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.998), ("int8-fp16", 0.998), ("fp8", 0.995)])
def test_what_it_costs_is_measured(calibrated: Path, precision: str, least: float) -> None:
    """The manifest's figures are those of its graphs, on a picture that nothing was calibrated or measured on."""
    if precision.startswith("int8") and int8_products_saturate():
        least = 0.98  # the manifest says what ONNX Runtime's int8 makes of it on such a CPU, and the engine warns
    bundle = open_bundle(calibrated)
    for graph in bundle.manifest.precision(precision).graphs:
        assert {row.output for row in graph.parity} == set(bundle.manifest.vision.output_names)
        assert min(row.cosine for row in graph.parity) > least
    pixels = {"pixels": picture(128, 160, seed=77)}
    outputs, expected = (
        run_graph(bundle, graph_of(bundle, "image_uint8", Grid(1, 8, 10), name), pixels) for name in (precision, "fp32")
    )
    for one, other in zip(outputs, expected, strict=True):
        assert least < distance(one, other).cosine < 0.99999  # worse than fp16: it is quantized


def test_accuracy_on_held_out_questions(calibrated: Path, reference: Path) -> None:
    """At most one of 60 lost in int8; all 500 are asked once per release."""
    questions, right = heldout_questions(60), {}
    for precision in ("fp32", "int8"):
        with open_edge(calibrated, EdgeOptions(backend_options=BackendOptions(precision=precision))) as edge:
            right[precision] = score(questions, answer_all_split(open_both(edge, reference)[0], questions)).overall
    assert right["int8"] >= right["fp32"] - 1.01 / 60


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "lost"), [("int8", 0.005), ("int8-fp16", 0.005), ("fp8", 0.01), ("fp16", 0.0)])
def test_accuracy_on_all_held_out_questions(calibrated: Path, reference: Path, precision: str, lost: float) -> None:
    questions, right = heldout_questions(500), {}
    for name in ("fp32", precision):
        with open_edge(calibrated, EdgeOptions(backend_options=BackendOptions(precision=name))) as edge:
            right[name] = score(questions, answer_all_split(open_both(edge, reference)[0], questions)).overall
    assert right[precision] >= right["fp32"] - lost


def test_nothing_changed_nothing_done(calibrated: Path, calibration_data: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in calibrated.rglob("*")}
    assert calibrate_bundle(
        calibrated, CalibrationRequest("int8", calibration_data, samples=128, auto_exclude=0.0)
    ).skipped
    assert {file: file.stat().st_mtime_ns for file in calibrated.rglob("*")} == before


def test_statistics_serve_another_method(fresh: Path, calibration_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = CalibrationRequest("int8", calibration_data, samples=FEW, auto_exclude=0.0)
    first = calibrate_bundle(fresh, request)

    def observed(*_: object) -> None:
        raise AssertionError("a second pass over the data")

    monkeypatch.setattr(ChannelHistogram, "add", observed)
    second = calibrate_bundle(fresh, replace(request, method="percentile", smooth=0.0))
    assert not second.skipped
    assert second.record.key != first.record.key
    bundle = open_bundle(fresh)
    assert [item.precision for item in bundle.manifest.precisions] == ["fp32", "fp16", "int8"]
    assert len(list(fresh.glob("int8-*"))) == 1  # the one that it replaced is gone


def test_an_interrupted_pass_goes_on(
    fresh: Path, calibration_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = open_bundle(fresh)
    spec, base = bundle.manifest.vision, bundle.manifest.precision("fp32")
    sources, policy = list_sources(calibration_data, 0), bucket_policy(bundle, "fp32")
    monkeypatch.setattr(statistics_module, "_SAVE_EVERY", 0.0)
    with StageRunner(spec, source_weights(bundle, base), "fp32") as runner:
        seen: list[str] = []

        def stop_after_five(what: str, done: float) -> None:
            seen.append(what)
            if len(seen) == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            gather(bundle, lambda: runner, sources, policy, 12, stop_after_five)
        partial = load_statistics(fresh / STATISTICS_NAME)
        assert partial is not None
        assert (partial.complete, len(partial.selection.used)) == (False, 5)
        seen.clear()
        resumed = gather(bundle, lambda: runner, sources, policy, 12, lambda what, done: seen.append(what))
        assert resumed.complete
        assert len(seen) == len(resumed.selection.used) - 5
        (fresh / STATISTICS_NAME).unlink()
        whole = gather(bundle, lambda: runner, sources, policy, 12)
    assert resumed.selection == whole.selection
    for name, histogram in whole.histograms.items():
        np.testing.assert_array_equal(histogram.counts, resumed.histograms[name].counts)
        np.testing.assert_array_equal(histogram.largest, resumed.histograms[name].largest)


@pytest.mark.parametrize("damage", [b"", b"not an archive", "half"])
def test_damaged_statistics_are_gathered_again(fresh: Path, calibration_data: Path, damage: bytes | str) -> None:
    request = CalibrationRequest("int8", calibration_data, samples=2, auto_exclude=0.0)
    calibrate_bundle(fresh, request)
    file = fresh / STATISTICS_NAME
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    assert load_statistics(file) is None
    assert calibrate_bundle(fresh, request).skipped  # the same statistics, so the same set
    assert load_statistics(file) is not None


def test_stages_compute_what_the_graph_computes(bundle: Path) -> None:
    opened = open_bundle(bundle)
    spec, base = opened.manifest.vision, opened.manifest.precision("fp32")
    for grid in (Grid(1, 8, 10), Grid(4, 6, 6)):
        pixels = np.random.default_rng(2).standard_normal((grid.patches, spec.patch_values), dtype=np.float32)
        with StageRunner(spec, source_weights(opened, base), "fp32") as runner:
            outputs = runner.run(EncoderInput(grid, pixels)).outputs
        expected = run_graph(opened, graph_of(opened, "fixed", grid, "fp32"), {"pixel_values": pixels})
        for name, array in zip(spec.output_names, expected, strict=True):
            assert distance(outputs[name], array).relative_l2 < 1e-5


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_rows_are_quantized_to_half_a_step(kind: str, rest: str) -> None:
    rng = np.random.default_rng(1)
    weights = (rng.standard_normal((40, 64)) * np.logspace(-3, 2, 40)[:, None]).astype(np.float32)
    weights[7] = 0
    values, scales = quantize_rows(weights, kind, rest)
    assert values.dtype.itemsize == 1
    assert scales.dtype == np.dtype("float16" if rest == "fp16" else "float32")
    step = scales.astype(np.float64)[:, None]
    error = np.abs(values.astype(np.float64) * step - weights)
    if kind == "int8":
        assert np.abs(values.astype(np.int32)).max() <= 127
        assert (error <= 0.5001 * step).all()
    else:  # 3 bits of mantissa
        assert (error <= np.maximum(np.abs(weights) / 16, 2.0**-10 * step) * 1.01).all()


def test_excluded_linears_keep_their_weights(fresh: Path, calibration_data: Path) -> None:
    request = CalibrationRequest(
        "int8", calibration_data, samples=2, auto_exclude=0.0, exclude=("blocks.0.*", "*merger*")
    )
    record = calibrate_bundle(fresh, request).record
    assert "blocks.0.attn.qkv" in record.excluded
    assert not any("merger" in name or name.startswith("blocks.0.") for name in record.quantized)
    bundle = open_bundle(fresh)
    stored = {
        name: stored_in_graphs(bundle.graph_path(graph) for graph in bundle.manifest.precision(name).graphs)
        for name in ("fp32", "int8")
    }
    assert stored["int8"]["blocks.0.attn.qkv.weight"].dtype == np.float32
    assert stored["int8"]["blocks.1.attn.qkv.weight"].dtype == np.int8
    plain, made = (source_weights(bundle, bundle.manifest.precision(name)) for name in ("fp32", "int8"))
    for name in ("merger.linear_fc1.weight", "merger.norm.weight", "blocks.0.norm1.bias"):
        np.testing.assert_array_equal(plain.read(name), made.read(name))


def test_samples_go_through_the_edge_s_preprocessing(bundle: Path, calibration_data: Path) -> None:
    opened = open_bundle(bundle)
    sources, policy = list_sources(calibration_data, 3), bucket_policy(opened, "fp32")
    selection = Selection()
    with open_edge(bundle) as edge:
        for index, samples in stream_samples(sources, opened, policy, selection, 12):
            encoded = edge.encode(sources[index].messages)
            assert [item.grid for item in encoded.media] == [sample.input.grid for sample in samples][
                : len(encoded.media)
            ]
            for ours, theirs in zip(samples, encoded.media, strict=False):
                np.testing.assert_array_equal(ours.input.pixel_values, theirs.input.pixel_values)
    assert sum(selection.per_bucket.values()) == 12


def test_the_seed_decides_the_order(calibration_data: Path) -> None:
    names = [[source.name for source in list_sources(calibration_data, seed)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2])


def test_a_folder_of_pictures_and_clips_with_unreadable_ones(fresh: Path, samples: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deeper").mkdir(parents=True)
    shutil.copy(samples / "colour.png", data / "deeper")
    shutil.copy(samples / "motion.mp4", data)
    (data / "broken.png").write_bytes(b"not a picture")
    (data / "broken.mp4").write_bytes(b"not a clip")
    (data / "notes.txt").write_text("not looked at")
    command = ("calibrate", fresh, "--data", data)
    done = run_process(*command, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["calibration"]["samples"] == 2
    assert sorted(name for name, _ in document["unreadable"]) == ["broken.mp4", "broken.png"]
    assert "1x8x12" in document["thin_buckets"]
    again = run_process(*command)
    assert "2 of the data could not be used" in again.stderr
    assert "broken.png" in again.stderr
    assert "bucket 1x8x12 has only 0 samples" in again.stderr
    assert "nothing changed" in again.stdout


def bad_requests(tmp: Path) -> list[tuple[CalibrationRequest, str]]:
    empty, unreadable = tmp / "empty", tmp / "unreadable"
    empty.mkdir()
    unreadable.mkdir()
    (unreadable / "a.png").write_bytes(b"no")
    good = CalibrationRequest("int8", unreadable)
    return [
        (replace(good, precision="int4"), "--precision|int8 or fp8"),
        (replace(good, data=empty), "no pictures or clips"),
        (replace(good, data=tmp / "nowhere"), "no such file or folder"),
        (good, "none of 1 items in the calibration data can be used"),
        (replace(good, samples=0), "no samples: expected at least 1"),
        (replace(good, method="mean"), "no such method"),
        (replace(good, smooth=1.5), "bad smoothing strength"),
        (replace(good, rest="bf16"), "no such precision"),
        (replace(good, auto_exclude=1.0), "bad target cosine"),
    ]


def test_bad_requests_leave_the_bundle_as_it_was(fresh: Path, tmp_path: Path, calibration_data: Path) -> None:
    before = (fresh / "manifest.json").read_bytes()
    for request, message in bad_requests(tmp_path):
        with pytest.raises(InputError, match=message):
            calibrate_bundle(fresh, request)
    small = CalibrationRequest("int8", calibration_data, samples=1, auto_exclude=0.0)
    with pytest.raises(InputError, match="matches no product"):
        calibrate_bundle(fresh, replace(small, exclude=("blocks.99.*",)))
    with pytest.raises(InputError, match="nothing is left to quantize"):
        calibrate_bundle(fresh, replace(small, exclude=("*",)))
    with pytest.raises(InputError, match="not reached with any product quantized"):
        calibrate_bundle(fresh, replace(small, auto_exclude=0.999999999))
    assert (fresh / "manifest.json").read_bytes() == before
    assert not list(fresh.glob("int8*"))


def test_a_bundle_without_a_base(fresh: Path, calibration_data: Path, tmp_path: Path) -> None:
    manifest = open_bundle(fresh).manifest
    calibrate_bundle(fresh, CalibrationRequest("int8", calibration_data, samples=1, auto_exclude=0.0))
    made = open_bundle(fresh).manifest
    replace(made, precisions=tuple(item for item in made.precisions if item.precision == "int8")).write(fresh)
    with pytest.raises(BundleError, match="no set to calibrate"):
        calibrate_bundle(fresh, CalibrationRequest("int8", calibration_data, samples=1, auto_exclude=0.0))
    assert manifest.precision("fp32")


def test_a_source_is_told_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "messages.jsonl"
    line = {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}
    file.write_text(json.dumps(line))
    (first,) = list_sources(file, 0)
    line["messages"][0]["content"][0]["image"] = "b.png"  # type: ignore[index]
    file.write_text(json.dumps(line))
    (second,) = list_sources(file, 0)
    assert isinstance(first, Source)
    assert first.digest != second.digest


def test_photographs_calibrate_and_others_keep_their_embeddings(small_bundle: Path, tmp_path: Path) -> None:
    """Every output of pictures that were not observed is within the precision's limit.

    The ranges of seven photographs do not hold a brick wall's second DeepStack level: 0.9905 without exclusion, or with
    one that asks the seven alone.
    """

    def asked(path: Path) -> list[dict[str, object]]:
        part = {"type": "image", "image": str(path), "resized_height": 128, "resized_width": 128}
        return [{"role": "user", "content": [part]}]

    seen, unseen = photographs()[::2], photographs()[1::2]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": asked(path)}) + "\n" for path in seen))
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    done = calibrate_bundle(bundle, CalibrationRequest("int8", data, samples=32, auto_exclude=0.999))
    assert done.record.samples == len(seen)
    figures = {item.pictures: item.cosine for item in done.record.figures}
    assert [*figures] == ["calibration", "drawn", "other kinds"]  # seven are too few to hold one out
    assert min(figures["calibration"], figures["drawn"]) >= 0.999
    assert figures["other kinds"] >= 0.998
    found = []
    for precision in ("fp32", "int8"):
        options = EdgeOptions(wire_dtype="fp32", backend_options=BackendOptions(precision=precision, self_test=False))
        with open_edge(bundle, options) as edge:
            found.append([edge.encode(asked(path)).request.media[0] for path in unseen])
    cosines = [
        distance(other, one).cosine
        for exact, quantized in zip(*found, strict=True)
        for one, other in zip((exact.embeds, *exact.deepstack), (quantized.embeds, *quantized.deepstack), strict=True)
    ]
    assert min(cosines) >= PRECISIONS["int8"].min_cosine, sorted(cosines)
