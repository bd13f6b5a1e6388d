"""The daemon and `ask` in processes that cannot import torch, transformers or qwen-vl-utils."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from tests.support.http_api.chat import post_chat, user
from tests.support.paths import ROOT
from tests.support.run_cli import run_process

BLOCKED = ("torch", "torchvision", "transformers", "qwen_vl_utils", "decord", "torchcodec")
SITE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is not installed", name=name.split(".")[0])

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """Environment of a process where the packages raise ImportError."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    environment = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    code = "import torch"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert "torch is not installed" in done.stderr
    return environment


def asked(url: str, part: dict[str, object]) -> httpx.Response:
    return post_chat(url, {"messages": [user(part, "What colour is it?")]}, timeout=120)


def test_the_daemon_answers_about_pictures_and_clips_as_with_torch(
    bundle: Path, samples: Path, server_url: str, tmp_path: Path, without_torch: dict[str, str]
) -> None:
    pictures = sorted(samples.glob("*.png"))[:4]
    parts = [{"type": "image_url", "image_url": {"url": f"file://{path}"}} for path in pictures]
    parts.append({"type": "video_url", "video_url": {"url": f"file://{samples}/motion.mp4"}})
    answers: dict[str, list[str]] = {}
    for preprocess, environment in (("auto", without_torch), ("reference", {})):
        folder = tmp_path / preprocess
        folder.mkdir()
        settings = f'media_folders = ["{samples}"]\npreprocess = "{preprocess}"\n'
        with running_daemon(folder, bundle, server_url, settings, **environment) as daemon:
            found = [asked(daemon.url, part).json() for part in parts]
            answers[preprocess] = [item["choices"][0]["message"]["content"] for item in found]
    assert answers["auto"] == answers["reference"]
    assert all(answers["auto"])


def test_ask_answers_without_torch(bundle: Path, samples: Path, server_url: str, without_torch: dict[str, str]) -> None:
    arguments = ["ask", "What colour is it?", "--bundle", str(bundle), "--server", server_url, "--json"]
    arguments += ["--image", str(samples / "colour.png"), "--preprocess"]
    lean = subprocess.run(
        [sys.executable, "-m", "qwen3vl_edge", *arguments, "auto"],
        env={**os.environ, **without_torch},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    reference = run_process(*arguments, "reference")
    for done in (lean, reference):
        assert done.returncode == 0, done.stderr
    assert json.loads(lean.stdout)["generated_ids"] == json.loads(reference.stdout)["generated_ids"]


def test_a_clip_without_pyav_is_refused_with_the_command_that_installs_it(
    edge: Edge, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'qwen3vl-edge\[edge-lean\]'"):
        edge.prepare([{"role": "user", "content": [{"type": "video", "video": str(samples / "motion.mp4")}]}])
