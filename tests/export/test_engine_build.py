"""Engines of the reference checkpoint, built by NVIDIA's own TensorRT-RTX builder, which needs no GPU for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.trt_plans import ENGINE_FOLDER, EngineRecord
from qwen3vl_edge.contract.errors import ContractError, EngineError
from qwen3vl_edge.contract.machine.gpu import Gpu, find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import import_library, rtx_takes
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.backends.selection import choose_engine, unfit
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.export.tensorrt import build_engines as engines
from qwen3vl_edge.export.tensorrt import build_job
from qwen3vl_edge.export.tensorrt.build_engines import build_engines, kernel_rows
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
from qwen3vl_edge.export.tensorrt.build_plan import PlanSettings, bucket_shapes, builder_config
from qwen3vl_edge.export.tensorrt.build_progress import BuildProgress
from qwen3vl_edge.export.tensorrt.network import check_tensors, parse_graph
from qwen3vl_edge.export.tensorrt.targets import TARGETS
from tests.edge_runtime import test_gpu

ADA = Gpu("RTX 4090", "8.9", 24 << 30, "13.0")
HOPPER = Gpu("H200", "9.0", 141 << 30, "13.0")
slow = pytest.mark.slow  # the rest of a table whose ends are built every time
AHEAD = [name for name, target in TARGETS.items() if target.ahead_of_time]
no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="says what happens on a machine without a GPU")


@pytest.fixture(scope="module")
def workplace(few_buckets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that this module's builds may write into."""
    copy = tmp_path_factory.mktemp("engines") / "reference"
    shutil.copytree(few_buckets, copy)
    return copy


@pytest.fixture(scope="module")
def quantized(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with quantized sets that this module's builds may write into."""
    return Path(shutil.copytree(calibrated, tmp_path_factory.mktemp("quantized") / "reference"))


def check_engine(path: Path, record: EngineRecord) -> None:
    """Every bucket served once, the I/O table the manifest's, every plan on disk and recorded."""
    bundle = open_bundle(path)  # hashes every file
    assert record in bundle.manifest.engines
    served = [bucket for plan in record.plans for bucket in plan.buckets]
    assert served == [str(grid) for grid in bundle.manifest.buckets(record.precision)]
    graphs = {graph.path: graph for graph in bundle.manifest.precision(record.precision).graphs}
    for plan in record.plans:
        graph = graphs[plan.graph]
        assert (plan.inputs, plan.outputs) == (graph.inputs, graph.outputs)
        content = (path / plan.path).read_bytes()
        for spec in (*plan.inputs, *plan.outputs):
            assert spec.name.encode() in content


@pytest.mark.parametrize(
    ("target", "layout"),
    [
        *(pytest.param(name, "profiles", marks=[] if name == "desktop-ada" else [slow]) for name in AHEAD),
        *(pytest.param(name, "per-bucket", marks=[] if name == AHEAD[-1] else [slow]) for name in AHEAD[-3:]),
    ],
)
def test_every_bucket_in_fp16(workplace: Path, target: str, layout: str) -> None:
    result = build_engines(workplace, BuildRequest(target, layout=layout))
    record = result.record
    assert not result.skipped
    assert (record.target, record.precision, record.layout) == (target, "fp16", layout)
    assert record.compute_capabilities == TARGETS[target].compute_capabilities
    assert record.library_version == import_library("tensorrt_rtx").__version__
    check_engine(workplace, record)
    built = open_bundle(workplace).manifest.engines
    assert len({(item.target, item.precision) for item in built}) == len(built)  # a new one takes the old one's place


@pytest.mark.parametrize(
    ("target", "layout"), [("desktop-rtx", "profiles"), pytest.param("rtx-portable", "per-bucket", marks=slow)]
)
def test_every_bucket_in_fp32(workplace: Path, target: str, layout: str) -> None:
    record = build_engines(workplace, BuildRequest(target, precision="fp32", layout=layout)).record
    check_engine(workplace, record)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        pytest.param("desktop-ada", "int8", marks=slow),
        ("rtx-portable", "int8-fp16"),
        *(
            pytest.param(target, precision, marks=slow)
            for target in ("desktop-ampere", "desktop-blackwell")
            for precision in ("int8", "int8-fp16")
        ),
        pytest.param("desktop-ada", "int8-fp16", marks=slow),
        pytest.param("rtx-portable", "int8", marks=slow),
    ],
)
def test_every_bucket_in_int8(quantized: Path, target: str, precision: str) -> None:
    """The very files that ONNX Runtime runs on a CPU; TensorRT-RTX keeps the weights in int8, a copy per profile."""
    record = build_engines(quantized, BuildRequest(target, precision=precision, report=True)).record
    check_engine(quantized, record)
    # Counts of docs/guides/engines.md: with float32 around the products no attention is fused.
    for row in kernel_rows(quantized, record):
        assert row["most_a_block"] <= (12 if precision == "int8" else 10), row
        assert row["fused_attention"] == (0 if precision == "int8" else row["blocks"]), row
    manifest = open_bundle(quantized).manifest
    weights = manifest.file(manifest.precision(precision).weights).bytes
    (plan,) = record.plans
    assert manifest.file(plan.path).bytes / len(plan.buckets) < 1.5 * weights + 2**20  # in fp32 it would be thrice that


@pytest.mark.parametrize(
    "target", [pytest.param("desktop-ada", marks=slow), pytest.param("desktop-blackwell", marks=slow), "gb10"]
)
def test_every_bucket_in_fp8(quantized: Path, target: str) -> None:
    record = build_engines(quantized, BuildRequest(target, precision="fp8", report=True)).record
    check_engine(quantized, record)
    for row in kernel_rows(quantized, record):
        assert (row["most_a_block"], row["fused_attention"]) == (9, row["blocks"])


def test_a_target_without_float8_says_so(quantized: Path) -> None:
    with pytest.raises(EngineError, match="desktop-ampere cannot compute fp8"):
        build_engines(quantized, BuildRequest("desktop-ampere", precision="fp8"))


def test_profiles_hold_the_weights_once(fresh: Path) -> None:
    weights = open_bundle(fresh).manifest.file("fp16/weights.bin").bytes
    one = build_engines(fresh, BuildRequest("desktop-ada", buckets=(Grid(1, 8, 8),))).record
    size_one = (fresh / one.plans[0].path).stat().st_size
    three = build_engines(fresh, BuildRequest("desktop-ada", buckets=(Grid(1, 8, 8), Grid(1, 8, 10), Grid(1, 8, 12))))
    size_three = (fresh / three.record.plans[0].path).stat().st_size
    assert len(three.record.plans) == 1
    assert weights < size_one
    assert size_three - size_one < 2 * weights  # two profiles more, and the weights not again


def test_nothing_changed_is_skipped_and_changes_are_not(fresh: Path) -> None:
    request = BuildRequest("rtx-portable", buckets=(Grid(1, 8, 8),))
    first = build_engines(fresh, request)
    plan = fresh / first.record.plans[0].path
    written = plan.stat().st_mtime_ns
    again = build_engines(fresh, request)
    assert again.skipped
    assert again.record == first.record
    assert plan.stat().st_mtime_ns == written
    other = build_engines(fresh, replace(request, optimization_level=1))
    assert not other.skipped
    assert not plan.exists()
    assert [item.key for item in open_bundle(fresh).manifest.engines] == [other.record.key]


def test_a_bucket_that_the_bundle_has_no_graph_for(fresh: Path) -> None:
    """Profiles come from the dynamic-shape graph, so a new bucket costs no export."""
    (plan,) = build_engines(fresh, BuildRequest("desktop-ada", buckets=(Grid(1, 32, 32),))).record.plans
    assert plan.buckets == ("1x32x32",)


def test_progress_only_grows_and_reaches_every_plan(fresh: Path) -> None:
    seen: list[tuple[str, float]] = []
    request = BuildRequest("desktop-ada", layout="per-bucket", buckets=(Grid(1, 8, 8), Grid(4, 6, 6)))
    build_engines(fresh, request, lambda what, done: seen.append((what, done)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.5 < shares[-1] <= 1.0
    assert {what.split(":")[0] for what, _ in seen} == {"desktop-ada 1x8x8", "desktop-ada 4x6x6"}


def test_nested_phases() -> None:
    seen: list[float] = []
    progress = BuildProgress(lambda what, done: seen.append(done))
    progress.start("build", None, 2)
    progress.start("inner", "build", 4)
    progress.step("inner", 1)
    progress.finish("inner")
    progress.step("build", 0)
    progress.start("inner", "build", 2)
    progress.step("inner", 0)
    assert seen == [0.0, 0.0, 0.25, 0.5, 0.5, 0.75]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_the_builder_and_leaves_the_bundle_as_it_was(fresh: Path) -> None:
    kept = build_engines(fresh, BuildRequest("desktop-ada", buckets=(Grid(1, 8, 8),))).record
    before = {file: file.stat().st_mtime_ns for file in fresh.rglob("*")}
    sent: list[float] = []

    def interrupt(what: str, done: float) -> None:
        if done > 0.2 and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engines(fresh, BuildRequest("desktop-ada"), interrupt)
    assert sent
    assert {file: file.stat().st_mtime_ns for file in fresh.rglob("*")} == before
    assert open_bundle(fresh).manifest.engines == (kept,)


def test_a_failed_manifest_leaves_no_plan(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(engines, "_record", fail)
    with pytest.raises(OSError, match="disk full"):
        build_engines(fresh, BuildRequest("desktop-ada", buckets=(Grid(1, 8, 8),)))
    assert not list((fresh / ENGINE_FOLDER).rglob("*.plan"))
    open_bundle(fresh)


def test_no_flag_changes_a_dtype(bundle: Path) -> None:
    library = import_library("tensorrt_rtx")
    opened = open_bundle(bundle)
    graph = next(item for item in opened.manifest.precision("fp32").graphs if item.kind == "dynamic")
    parsed = parse_graph("tensorrt_rtx", opened.graph_path(graph), graph)
    profiles = [bucket_shapes(graph.inputs, grid) for grid in opened.manifest.buckets("fp32")]
    config = builder_config(parsed, profiles, PlanSettings("tensorrt_rtx", ((8, 9),), 1 << 30))
    assert config.num_optimization_profiles == len(profiles)
    assert not config.get_flag(library.BuilderFlag.TF32)
    assert parsed.network.get_flag(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert config.get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) <= 1 << 30


def test_parser_error_names_node_op_and_reason(fresh: Path) -> None:
    bundle = open_bundle(fresh)
    graph = next(item for item in bundle.manifest.precision("fp16").graphs if item.bucket == "1x8x8")
    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type = "Softmaxx"
    onnx.save(model, bundle.graph_path(graph))
    with pytest.raises(EngineError) as caught:
        parse_graph("tensorrt_rtx", bundle.graph_path(graph), graph)
    assert node.name in str(caught.value)
    assert "Softmaxx" in str(caught.value)
    assert "Plugin not found" in str(caught.value)


def test_builder_error_names_node_and_reason(bundle: Path) -> None:
    """What the table of targets forbids is what the builder refuses."""
    from qwen3vl_edge.export.tensorrt.build_plan import build_plan

    opened = open_bundle(bundle)
    graph = next(item for item in opened.manifest.precision("fp32").graphs if item.bucket == "1x8x8")
    parsed = parse_graph("tensorrt_rtx", opened.graph_path(graph), graph)
    settings = PlanSettings("tensorrt_rtx", ((7, 5),), 1 << 30)
    with pytest.raises(EngineError, match=r"patch_embed\.proj.*FP32 GEMM is not supported"):
        build_plan(parsed, graph, [], settings, lambda what, done: None, threading.Event())


def test_tensor_that_differs_from_the_manifest_is_named(bundle: Path) -> None:
    graph = next(item for item in open_bundle(bundle).manifest.precision("fp16").graphs if item.bucket == "1x8x8")
    wrong = replace(graph.outputs[0], dtype="float32")
    with pytest.raises(EngineError, match="embeds"):
        check_tensors((wrong, *graph.outputs[1:]), list(graph.outputs), graph.path)
    with pytest.raises(EngineError, match="other tensors"):
        check_tensors(graph.outputs[1:], list(graph.outputs), graph.path)


REFUSED: list[tuple[str, BuildRequest, str]] = [
    ("unknown target", BuildRequest("jetson-nano"), "no such target.*jetson-orin"),
    ("fp32 on Turing", BuildRequest("desktop-turing", precision="fp32"), "cannot compute fp32"),
    ("unknown precision", BuildRequest("desktop-ada", precision="int3"), "no such precision"),
    ("unknown layout", BuildRequest("desktop-ada", layout="both"), "layout"),
    ("bucket without a graph", BuildRequest("desktop-ada", layout="per-bucket", buckets=(Grid(1, 2, 2),)), "1x2x2"),
    ("no buckets", BuildRequest("desktop-ada", buckets=()), "nothing to build"),
    ("workspace", BuildRequest("desktop-ada", workspace=9 << 30), "at most 8GiB"),
    ("timing cache", BuildRequest("desktop-ada", timing_cache=Path("x")), "no timing cache"),
]


@pytest.mark.parametrize(("request_", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_built_is_refused(workplace: Path, request_: BuildRequest, words: str) -> None:
    before = open_bundle(workplace).manifest
    with pytest.raises(ContractError, match=words):
        build_engines(workplace, request_)
    assert open_bundle(workplace).manifest == before


@no_gpu
@pytest.mark.parametrize("target", ["jetson-orin", "jetson-thor", "this-gpu"])
def test_device_targets_say_what_to_run_there(workplace: Path, target: str) -> None:
    request = BuildRequest(target, precision="fp16", layout="per-bucket", buckets=(Grid(1, 8, 8), Grid(4, 6, 6)))
    with pytest.raises(EngineError) as caught:
        build_engines(workplace, request)
    text = str(caught.value)
    assert "on the device itself" in text
    command = f"qwen3vl-edge build reference --target {target} --precision fp16 --layout per-bucket"
    assert f"{command} --buckets 128x128 --video 8x96x96" in text


@no_gpu
def test_stripped_weights_need_the_device(workplace: Path) -> None:
    with pytest.raises(EngineError, match=r"CUDA driver.*--strip-weights"):
        build_engines(workplace, BuildRequest("desktop-ada", strip_weights=True))


def test_an_engine_is_taken_only_where_it_fits(ada: Bundle) -> None:
    (record,) = ada.manifest.engines
    version = record.library_version
    assert unfit(ada, record, version, ADA) is None
    assert choose_engine(ada, "tensorrt_rtx", version, ADA) == record
    assert choose_engine(ada, "tensorrt_rtx", version, ADA, "fp16", "desktop-ada") == record
    with pytest.raises(EngineError, match="needs a GPU"):
        choose_engine(ada, "tensorrt_rtx", version, None)
    cases = [
        (version, replace(ADA, compute_capability="8.6"), "built for compute capability 8.9"),
        ("1.6.0.1", ADA, "built with tensorrt_rtx " + version),
    ]
    for here, gpu, words in cases:
        with pytest.raises(EngineError, match=re.escape(words)) as caught:
            choose_engine(ada, "tensorrt_rtx", here, gpu)
        assert f"qwen3vl-edge build {ada.path} --target desktop-ada --precision fp16" in str(caught.value)
    for library, precision in (("tensorrt", None), ("tensorrt_rtx", "fp32")):
        with pytest.raises(EngineError, match="qwen3vl-edge build"):
            choose_engine(ada, library, version, ADA, precision)


def test_an_engine_of_other_weights_or_another_graph_is_refused(ada: Bundle) -> None:
    (record,) = ada.manifest.engines
    version = record.library_version
    assert "other weights" in str(unfit(ada, replace(record, weights_sha256="00" * 32), version, ADA))
    plan = replace(record.plans[0], graph_sha256="00" * 32)
    assert "another fp16/dynamic.onnx" in str(unfit(ada, replace(record, plans=(plan,)), version, ADA))


def test_an_altered_plan_is_refused_with_the_command_that_rebuilds_it(ada: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ada.path, tmp_path / "reference"))
    plan = copy / ada.manifest.engines[0].plans[0].path
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(ContractError, match=r"altered.*qwen3vl-edge build .* --target desktop-ada"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("built_for", "here", "runs"),
    [
        ("8.9", "8.9", True),
        ("8.9", "8.6", False),
        ("8.0+", "12.0", True),
        ("8.0+", "7.5", False),
        ("8.0+", "8.0", True),
    ],
)
def test_compute_capabilities(ada: Bundle, built_for: str, here: str, runs: bool) -> None:
    record = replace(ada.manifest.engines[0], compute_capabilities=(built_for,))
    assert record.runs_on(here) is runs


@no_gpu
def test_loading_without_a_gpu_says_so(ada: Bundle) -> None:
    with pytest.raises(EngineError, match=r"needs a GPU of compute capability 8\.9, and none was found"):
        load_backend("tensorrt_rtx", ada, BackendOptions())


def test_a_gpu_that_tensorrt_rtx_does_not_take_is_refused_before_the_build(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_job, "find_gpu", lambda: HOPPER)
    monkeypatch.setattr(build_job, "installed", lambda name: name == "tensorrt_rtx")
    with pytest.raises(
        EngineError,
        match=r"does not take this GPU, H200.*12\.0 or later.*--backend pytorch --device cuda, .*--provider cuda",
    ):
        build_engines(workplace, BuildRequest("this-gpu"))
    assert [rtx_takes(name) for name in ("8.6", "8.7", "9.0", "10.0", "12.1")] == [True, False, False, False, True]


def test_nor_is_a_portable_engine_run_there(ada: Bundle) -> None:
    """By its number 9.0 is later than 8.0, and the library has no kernels for it."""
    record = replace(ada.manifest.engines[0], compute_capabilities=("8.0+",))
    portable = replace(ada, manifest=replace(ada.manifest, engines=(record,)))
    assert choose_engine(portable, "tensorrt_rtx", record.library_version, ADA) == record
    with pytest.raises(EngineError, match=r"does not take this GPU, H200.*--device cuda.*--provider cuda"):
        choose_engine(portable, "tensorrt_rtx", record.library_version, HOPPER)


def test_tests_of_engines_are_skipped_there_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_gpu, "installed", lambda name: True)
    monkeypatch.setattr(test_gpu, "GPU", HOPPER)
    assert str(test_gpu.why_not("tensorrt_rtx")).startswith("TensorRT-RTX does not take this GPU: H200")
    assert test_gpu.why_not("tensorrt") is None
    monkeypatch.setattr(test_gpu, "GPU", ADA)
    assert test_gpu.why_not("tensorrt_rtx") is None
