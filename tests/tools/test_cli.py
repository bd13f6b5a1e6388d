"""The command line as a user meets it: real processes, one clear line and exit code 2 for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from qwen3vl_edge.tools.cli.main import app
from tests.support.paths import ROOT
from tests.support.run_cli import run_here, run_process


def test_export_inspect_and_ask(reference: Path, samples: Path, server_url: str, tmp_path: Path) -> None:
    out = str(tmp_path / "bundle")
    exported = run_process(
        "export", str(reference), "--buckets", "128x128", "--out", out, "--json", "--pixel-policy", "qwen-vl-utils"
    )
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["precisions"][0]["graphs"][0]["bucket"] == "1x8x8"
    inspected = run_process("inspect", out)
    assert inspected.returncode == 0
    assert "1x8x8" in inspected.stdout
    question = ("ask", "What colour is the circle?", "--bundle", out, "--server", server_url)
    picture = ("--image", str(samples / "colour.png"))
    plain = run_process(*question, *picture)
    assert plain.returncode == 0, plain.stderr
    assert "first_token" in plain.stderr
    answer = json.loads(run_process(*question, *picture, "--json", "--max-pixels", 20_000).stdout)
    assert answer["media"][0]["pixel_policy"] == "qwen-vl-utils"
    assert answer["media"][0]["pixel_limits"] == "4096 to 20000"
    assert plain.stdout.strip() == answer["text"]
    assert answer["media"][0]["grid"] == "1x8x8"
    assert answer["sent_bytes"] > 16 * 192 * 4 * 2
    oracle = run_process(*question, *picture, "--json", "--backend", "pytorch", "--model", str(reference))
    assert json.loads(oracle.stdout)["generated_ids"] == answer["generated_ids"]


def test_parity_of_the_samples(reference: Path, samples: Path, few_buckets: Path) -> None:
    found = run_process(
        "parity", "--bundle", few_buckets, "--model", reference, "--images", samples, "--wire-dtype", "fp32",
        "--precision", "fp32", "--prompts", samples / "questions.jsonl", "--json",
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr
    report = json.loads(found.stdout)
    assert report["passed"]
    assert report["agreement"] == 1.0
    assert report["max_kl"] < 1e-6


BAD: list[tuple[str, list[str], str]] = [
    ("no model", ["export", "nowhere", "--out", "{tmp}/b"], "no checkpoint folder at nowhere"),
    ("no such bucket size", ["export", "{model}", "--buckets", "100x100", "--out", "{tmp}/b"], "multiple of 32"),
    ("policy", ["export", "{model}", "--pixel-policy", "any", "--out", "{tmp}/b"], "checkpoint or qwen-vl-utils"),
    ("precision", ["export", "{model}", "--precision", "int3", "--out", "{tmp}/b"], "fp32 or fp16"),
    ("no bundle", ["inspect", "{tmp}/b"], "no bundle at"),
    ("no picture", ["ask", "x", "--bundle", "{bundle}", "--image", "nowhere.png"], "no such picture: nowhere.png"),
    ("text as picture", ["ask", "x", "--bundle", "{bundle}", "--image", "Makefile"], "not a picture"),
    ("no clip", ["ask", "x", "--bundle", "{bundle}", "--video", "nowhere.mp4"], "no such clip"),
    ("server away", ["ask", "x", "--bundle", "{bundle}", "--server", "http://127.0.0.1:9"], "cannot be reached"),
    ("backend", ["ask", "x", "--bundle", "{bundle}", "--backend", "abacus"], "no such backend"),
    ("messages", ["ask", "x", "--bundle", "{bundle}", "--messages", "Makefile"], "is not JSON"),
    ("no checkpoint", ["server", "--model", "nowhere"], "no checkpoint folder at nowhere"),
    ("port", ["server", "--model", "{model}", "--host", "192.0.2.1"], "cannot listen"),
    ("flash", ["server", "--model", "{model}", "--attention", "flash_attention_2", "--port", "0"], "flash"),
    ("no pictures", ["parity", "--bundle", "{bundle}", "--model", "{model}", "--images", "{tmp}"], "no pictures"),
    ("other model", ["parity", "--bundle", "{bundle}", "--model", "{tmp}/x"], "no checkpoint folder"),
]


@pytest.mark.parametrize(("arguments", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, reference: Path, bundle: Path, tmp_path: Path
) -> None:
    places = {"tmp": tmp_path, "model": reference, "bundle": bundle}
    done = run_process(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("qwen3vl-edge: ")
    assert words in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# The options are a part of the interface: scripts and units name them.
EDGE_OPTIONS = """--config --bundle --server --server-kind --server-model --host --port --unix-socket --backend
--provider --precision --model --device --dtype --preprocess --self-test --no-self-test --cache --media-folder"""
SERVER_OPTIONS = """--config --model --host --port --device-map --dtype --attention --max-batch --tokens-file --tls-cert
--tls-key --allow-pixels --wire-basis --engine --tensor-parallel --pipeline-parallel"""


@pytest.mark.parametrize(("command", "options"), [("edge", EDGE_OPTIONS), ("server", SERVER_OPTIONS)])
def test_options_of_the_long_running_programs(command: str, options: str) -> None:
    params = get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert {name for item in params for name in (*item.opts, *item.secondary_opts)} == set(options.split())
    # None is "not given": a default of the option would win over the settings file.
    assert {item.default for item in params} == {None}


def test_help_shows_the_defaults_of_the_settings() -> None:
    shown = " ".join(run_here("server", "--help").stdout.split())
    assert "(8000)" in shown
    assert "(127.0.0.1)" in shown


def test_options_win_over_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(f'bundle = "{tmp_path}/of-the-file"\nport = 70000\n')
    assert "0 to 65535, got 70000" in run_here("edge", "--config", file).stderr
    monkeypatch.setenv("QWEN3VL_EDGE_PORT", "70001")
    assert "0 to 65535, got 70001" in run_here("edge", "--config", file).stderr
    assert "0 to 65535, got 70002" in run_here("edge", "--config", file, "--port", 70002).stderr
    done = run_here("edge", "--config", file, "--port", 0)
    assert (done.returncode, "of-the-file" in done.stderr) == (2, True)
    done = run_here("edge", "--config", file, "--port", 0, "--bundle", tmp_path / "of-the-option")
    assert (done.returncode, "of-the-option" in done.stderr) == (2, True)


def test_bench_without_the_workshop_says_so_in_one_line(tmp_path: Path) -> None:
    """As installed from a wheel, which holds no tools/dev."""
    ignored = shutil.ignore_patterns("dev", "__pycache__")
    shutil.copytree(ROOT / "qwen3vl_edge", tmp_path / "qwen3vl_edge", ignore=ignored)
    # An editable install would find the missing package in its checkout.
    code = (
        "import sys, runpy\n"
        "sys.meta_path[:] = [item for item in sys.meta_path if 'editable' not in repr(item).lower()]\n"
        "sys.argv = ['qwen3vl-edge', 'bench', 'wire']; runpy.run_module('qwen3vl_edge', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("qwen3vl-edge: the benchmarks are not installed. ")
    assert "checkout of the repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bundle_of_another_model_is_refused(server_url: str, bundle: Path, samples: Path, tmp_path: Path) -> None:
    """A server refuses embeddings whose model hash is not its own."""
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["model_hash"] = "00" * 32
    (other / "manifest.json").write_text(json.dumps(manifest))
    picture = str(samples / "colour.png")
    done = run_process("ask", "What?", "--bundle", str(other), "--server", server_url, "--image", picture)
    assert done.returncode == 2
    assert "made for another model" in done.stderr


def test_truncated_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    weights = other / "fp32" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run_process("ask", "What?", "--bundle", str(other))
    assert done.returncode == 2
    assert "truncated" in done.stderr
