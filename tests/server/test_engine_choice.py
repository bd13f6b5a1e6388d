"""`--engine auto`: what it chooses from what is installed, what the machine has and what the settings need."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomllib

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.gpu import gpu_is_present
from qwen3vl_edge.contract.model_types import MODEL_TYPES
from qwen3vl_edge.server.engines.choice import (
    TRANSFORMERS_RELEASE,
    VLLM_MODEL_TYPES,
    VLLM_RELEASE,
    EngineChoice,
    VllmInstall,
    choose_engine,
    find_vllm,
    require_transformers,
)
from qwen3vl_edge.server.options import ServerOptions
from tests.support.paths import ROOT
from tests.support.vllm.stock_server import PYTHON, needs_vllm

WHOLE = VllmInstall(f"{VLLM_RELEASE}.1", cpu_only=False)
INSTALLS = {
    "tested": WHOLE,
    "none": None,
    "CPU build": VllmInstall(f"{VLLM_RELEASE}.0+cpu", cpu_only=True),
    "another release": VllmInstall("0.320.0", cpu_only=False),
}


def choose(vllm: VllmInstall | None, gpu: bool, model_type: str = "qwen3_vl", **settings: Any) -> EngineChoice:
    return choose_engine(ServerOptions(model="m", **settings), model_type, lambda: vllm, lambda: gpu)


@pytest.mark.parametrize(("install", "gpu"), [*itertools.product(INSTALLS, (True, False))])
def test_vllm_serves_where_it_is_installed_and_a_gpu_is_present(install: str, gpu: bool) -> None:
    chosen = choose(INSTALLS[install], gpu)
    assert chosen.name == ("vllm" if install == "tested" and gpu else "transformers")
    said = {"none": "not installed", "CPU build": "CPU build", "another release": f"tested with {VLLM_RELEASE}"}
    assert said.get(install, "a GPU is present" if gpu else "no GPU is present") in chosen.reason


@pytest.mark.parametrize(
    "settings",
    [
        {"device_map": "cuda:1"},
        {"attention": "eager"},
        {"capture": False},
        {"capture_sizes": ("8x256",)},
        {"allow_pixels": True},
    ],
)
def test_settings_of_the_transformers_engine_keep_it(settings: dict[str, Any]) -> None:
    chosen = choose(WHOLE, True, **settings)
    assert chosen.name == "transformers"
    assert next(iter(settings)) in chosen.reason


def test_a_model_type_that_vllm_is_not_adapted_to_keeps_transformers() -> None:
    assert choose(WHOLE, True, "qwen9_vl") == EngineChoice(
        "transformers", "auto: the vLLM engine does not serve qwen9_vl"
    )
    assert set(VLLM_MODEL_TYPES) <= set(MODEL_TYPES)


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(VLLM_MODEL_TYPES)))
def test_vllm_for_a_model_type_that_it_does_not_serve_is_refused(model_type: str) -> None:
    with pytest.raises(InputError, match=f"got vllm with {model_type}"):
        choose(WHOLE, True, model_type, engine="vllm")
    assert choose(None, False, model_type, engine="transformers").name == "transformers"


@pytest.mark.parametrize(
    "settings", [{"tensor_parallel": 4}, {"max_model_len": 512}, {"vllm_args": {"block_size": 32}}]
)
def test_settings_of_the_vllm_engine_are_not_dropped_in_silence(settings: dict[str, Any]) -> None:
    assert choose(WHOLE, True, **settings).name == "vllm"
    with pytest.raises(InputError, match="--engine transformers rules out"):
        choose(WHOLE, True, engine="transformers", **settings)
    with pytest.raises(InputError, match="vLLM is not installed") as caught:
        choose(None, True, **settings)
    name = next(iter(settings))
    assert caught.value.field == ("--tensor-parallel" if name == "tensor_parallel" else name)


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_an_engine_that_is_named_is_taken(name: str) -> None:
    def unasked() -> Any:
        raise AssertionError("nothing is searched for")

    assert choose_engine(ServerOptions(model="m", engine=name), "qwen3_vl", unasked, unasked).name == name


def test_the_releases_are_those_of_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith(f"vllm>={VLLM_RELEASE},<") for line in extras["vllm"])
    lowest = ".".join(map(str, TRANSFORMERS_RELEASE))
    assert any(line.startswith(f"transformers>={lowest},<") for line in extras["server"])


def test_an_older_transformers_is_named_before_it_is_imported() -> None:
    require_transformers()
    require_transformers(lambda name: "6.0.0.dev0")
    with pytest.raises(InputError, match=r"expected at least transformers 5\.24, got 5\.19\.0"):
        require_transformers(lambda name: "5.19.0")

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    with pytest.raises(InputError, match="got none"):
        require_transformers(missing)


@pytest.mark.parametrize(("status", "count", "present"), [(0, 1, True), (0, 0, False), (100, 0, False)])
def test_the_driver_counts_gpus(monkeypatch: pytest.MonkeyPatch, status: int, count: int, present: bool) -> None:
    def count_devices(pointer: Any) -> int:
        pointer._obj.value = count
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count_devices)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu_is_present() is present


CODE = """
import sys
from qwen3vl_edge.server.engines.choice import choose_engine, find_vllm
from qwen3vl_edge.server.options import ServerOptions
print(find_vllm())
print(choose_engine(ServerOptions(model="m"), "qwen3_vl", gpu=lambda: True))
print({"torch", "vllm", "transformers"} & set(sys.modules))
"""


def real_choice(python: str | Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(python), "-c", CODE], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(find_vllm() is not None, reason="for an environment without vLLM, as constraints.txt's")
def test_this_environment_has_no_vllm_and_nothing_heavy_is_imported_to_find_out() -> None:
    assert real_choice(sys.executable) == ["None", "transformers (auto: vLLM is not installed)", "set()"]


@pytest.mark.vllm
@needs_vllm
def test_vllm_s_cpu_build_is_recognised_without_importing_it() -> None:
    found, chosen, imported = real_choice(PYTHON)
    assert "cpu_only=True" in found
    assert chosen.startswith("transformers (auto: vLLM 0.32.0 is installed, but it is the CPU build")
    assert imported == "set()"
