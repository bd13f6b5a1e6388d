"""`--backend auto`: the stated order, never another precision, and without a GPU what it was before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen3vl_edge.contract.bundle.manifest import Manifest
from qwen3vl_edge.contract.bundle.measurements import LayerHeadroom
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord, PlanRecord
from qwen3vl_edge.contract.errors import ContractError, EngineError, InputError
from qwen3vl_edge.contract.machine.gpu import Gpu, gpu_is_present
from qwen3vl_edge.edge_runtime import edge as edge_module
from qwen3vl_edge.edge_runtime.ask import build_messages
from qwen3vl_edge.edge_runtime.backends.choice import BackendChoice, Machine, choose_backend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions

ADA = Gpu("RTX 4090", "8.9", 24 << 30, "13.0")
HERE = Path(__file__)  # a checkpoint is only named, not read
VERSION = "1.7.1"


def missing(*_: object) -> None:
    raise InputError("not installed", field="--backend")


def no_library(name: str) -> str:
    raise EngineError(f"{name} is not installed", field="--backend")


def works(*_: object) -> None:
    return None


# A GPU machine with everything on it.
ALL = Machine(lambda: True, lambda: ADA, lambda name: VERSION, works, works)
BARE = replace(ALL, library_version=no_library, start_torch=missing, start_cuda_provider=missing)


@pytest.fixture(scope="module")
def plain(small_bundle: Path) -> Bundle:
    """fp32 and fp16, no engine."""
    return open_bundle(small_bundle)


def with_engine(bundle: Bundle, precision: str, capability: str = "8.9") -> Bundle:
    manifest = bundle.manifest
    graphs = manifest.precision(precision)
    graph = graphs.graphs[0]
    plan = PlanRecord(
        "x.plan", graph.path, manifest.file(graph.path).sha256, (str(graph.bucket),), graph.inputs, graph.outputs
    )
    weights = manifest.file(graphs.weights).sha256
    record = EngineRecord(
        *("this-gpu", "tensorrt_rtx", VERSION, (capability,), precision),
        *("per-bucket", weights, "key", 1.0, (plan,)),
    )
    return replace(bundle, manifest=replace(manifest, engines=(record,)))


def named(choice: BackendChoice) -> tuple[str, str, str, str | None]:
    options = choice.options
    return choice.name, options.provider, options.device, options.precision


MODEL = BackendOptions(model=HERE)
FP16 = replace(MODEL, precision="fp16")


@pytest.mark.parametrize(
    ("engine", "options", "machine", "expected"),
    [
        ("fp32", MODEL, ALL, ("tensorrt_rtx", "cpu", "cpu", "fp32")),
        ("fp32", FP16, ALL, ("pytorch", "cpu", "cuda", "fp16")),  # not the engine's precision
        ("fp16", MODEL, ALL, ("pytorch", "cpu", "cuda", "fp32")),  # the bundle's first
        (None, MODEL, ALL, ("pytorch", "cpu", "cuda", "fp32")),
        (None, BackendOptions(), ALL, ("onnxruntime", "cuda", "cpu", "fp32")),  # no checkpoint
        ("fp32", MODEL, replace(ALL, library_version=no_library), ("pytorch", "cpu", "cuda", "fp32")),
        (None, MODEL, replace(ALL, start_torch=missing), ("onnxruntime", "cuda", "cpu", "fp32")),
        (None, FP16, BARE, ("onnxruntime", "cpu", "cpu", "fp16")),
        # Options of one backend keep the choice to it.
        ("fp32", replace(MODEL, provider="cpu"), ALL, ("onnxruntime", "cpu", "cpu", None)),
        ("fp32", replace(MODEL, provider="cuda-unfused"), ALL, ("onnxruntime", "cuda-unfused", "cpu", None)),
        ("fp32", replace(MODEL, device="cuda:1"), ALL, ("pytorch", "cpu", "cuda:1", "fp32")),
        ("fp32", replace(MODEL, dtype="bf16"), ALL, ("pytorch", "cpu", "cuda", "fp32")),
        ("fp32", replace(MODEL, target="this-gpu"), ALL, ("tensorrt_rtx", "cpu", "cpu", "fp32")),
    ],
)
def test_the_first_of_the_order_that_runs(
    plain: Bundle,
    engine: str | None,
    options: BackendOptions,
    machine: Machine,
    expected: tuple[str, str, str, str | None],
) -> None:
    bundle = plain if engine is None else with_engine(plain, engine)
    choice = choose_backend("auto", bundle, options, machine)
    assert named(choice) == expected
    assert choice.options.dtype == options.dtype
    assert choice.reason.startswith("auto: ")


def test_the_reason_names_what_comes_before_in_the_order(plain: Bundle) -> None:
    other_gpu = with_engine(plain, "fp32", "8.6")
    reason = choose_backend("auto", other_gpu, BackendOptions(), ALL).reason
    assert "auto: ONNX Runtime on CUDA; not engine of tensorrt: " in reason
    assert "built for compute capability 8.6, and here is RTX 4090" in reason
    assert "PyTorch on cuda: it needs the checkpoint (--model)" in reason


def _quantized(manifest: Manifest) -> Manifest:
    return replace(manifest, precisions=(replace(manifest.precisions[0], precision="int8"), *manifest.precisions[1:]))


def _with_float32_layers(manifest: Manifest) -> Manifest:
    wide = (LayerHeadroom("blocks.1.mlp.linear_fc2", 1e6, 0.07, "fp32"),)
    return replace(
        manifest,
        precisions=tuple(
            replace(item, headroom=wide) if item.precision == "fp16" else item for item in manifest.precisions
        ),
    )


@pytest.mark.parametrize(
    ("edit", "options", "expected"),
    [
        (_quantized, MODEL, ("onnxruntime", "cpu")),
        (_with_float32_layers, FP16, ("onnxruntime", "cuda")),
    ],
)
def test_what_a_backend_cannot_compute_in_is_not_given_to_it(
    plain: Bundle, edit: Callable[[Manifest], Manifest], options: BackendOptions, expected: tuple[str, str]
) -> None:
    choice = choose_backend("auto", replace(plain, manifest=edit(plain.manifest)), options, ALL)
    assert (choice.name, choice.options.provider) == expected


@pytest.mark.parametrize("options", [MODEL, FP16, replace(MODEL, device="cuda", dtype="fp16", target="this-gpu")])
def test_without_a_gpu_nothing_else_is_asked(plain: Bundle, options: BackendOptions) -> None:
    machine = Machine(lambda: False, missing, no_library, missing, missing)  # type: ignore[arg-type]
    choice = choose_backend("auto", with_engine(plain, "fp32"), options, machine)
    assert choice == BackendChoice("onnxruntime", replace(options, provider="cpu"))
    assert choose_backend("pytorch", plain, options, machine).name == "pytorch"


@pytest.mark.parametrize(
    ("options", "words"),
    [(replace(MODEL, target="this-gpu"), "tensorrt"), (BackendOptions(device="cuda"), "needs the checkpoint")],
)
def test_what_was_asked_for_is_not_replaced(plain: Bundle, options: BackendOptions, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        choose_backend("auto", plain, options, BARE)


@pytest.mark.skipif(gpu_is_present(), reason="says what happens on a machine without a GPU")
def test_this_machine_encodes_on_its_cpu(small_bundle: Path) -> None:
    with open_edge(small_bundle) as edge:
        assert (edge.encoder.name, edge.options.backend, edge.backend_reason) == ("onnxruntime", "onnxruntime", "")
        assert edge.options.backend_options.provider == "cpu"


def test_the_choice_is_told_in_the_log_and_in_evidence(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edge")
    monkeypatch.setattr(edge_module, "choose_backend", lambda *given: choose_backend(*given, machine=BARE))
    picture = Image.fromarray(np.zeros((128, 128, 3), np.uint8))
    with open_edge(small_bundle, EdgeOptions(backend_options=BackendOptions(self_test=False))) as edge:
        encoded = edge.encode(build_messages("What is it?", [picture], []))
    (item,) = encoded.request.media
    assert item.origin["backend_reason"].startswith("auto: ONNX Runtime on the CPU; not engine of tensorrt")
    assert f"backend onnxruntime, {item.origin['backend_reason']}" in caplog.messages
