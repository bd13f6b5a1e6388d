"""The GPU kit runs as a whole without a GPU, in toy sizes, so that it works where there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.bench.report.page import page
from qwen3vl_edge.tools.dev.gpu import run as kit_run
from qwen3vl_edge.tools.dev.gpu.context import Context, read_rows
from qwen3vl_edge.tools.dev.gpu.gpu_tests import run_gpu_tests
from qwen3vl_edge.tools.dev.gpu.run import run
from qwen3vl_edge.tools.dev.gpu.steps import STEPS, Step, chosen
from qwen3vl_edge.tools.dev.load.engine.bench import ARRIVALS, CAPTURED, EAGER, FLOOR
from qwen3vl_edge.tools.dev.load.engine.engines import ENGINE, VLLM
from qwen3vl_edge.tools.dev.load.engine.generate import DYNAMIC, STATIC
from tests.support.paths import ROOT

STEP_NAMES = "environment,tests,parity,encoder-2B,server"


def test_a_dry_run_does_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out, work = tmp_path / "out", tmp_path / "work"
    passed = run(chosen(STEP_NAMES), out, work, 1000, dry=True)
    document = json.loads((out / "gpu.json").read_text())
    log = (out / "gpu.log").read_text()
    assert passed, log
    assert {row["step"]: row["state"] for row in document["steps"]} == dict.fromkeys(
        ("export-2B", *STEP_NAMES.split(",")), "done"
    ), log
    assert document["peaks"][0]["fp32"] > 0
    assert {row["candidate"] for row in document["parity"]} >= {"onnxruntime cuda fp32", "onnxruntime cuda fp16"}
    assert all(row["answers_equal"] == row["answers"] > 0 for row in document["parity"])
    assert {row["bucket"] for row in document["encoder"]} == {"1x4x4", "2x4x4"}
    for row in document["encoder"]:
        assert row["finite"], row
        assert row["lowest_cosine"] > (0.9999 if row["dtype"] == "bf16" else 0.999999), row
        assert min(row["median_seconds"], row["floor_seconds"]) > 0, row
    measured = [row for row in document["server"] if "skipped" not in row]
    assert {row["candidate"] for row in measured} == {FLOOR, ENGINE, EAGER, DYNAMIC, STATIC, ARRIVALS}
    assert all(row["tokens_per_second"] > 0 for row in measured), measured
    skipped = {row["candidate"]: row["skipped"] for row in document["server"] if "skipped" in row}
    assert set(skipped) == {CAPTURED, VLLM}
    for row in measured:
        ratio = row.get("engine_over_this", {}).get("decode", {}).get("median")
        assert (ratio is not None) == (row["candidate"] in (EAGER, DYNAMIC, STATIC)), row
    if document["environment"]["gpu"] is None:
        assert {row["outcome"] for row in document["tests"]} == {"skipped"}

    (out / "gpu.json").rename(tmp_path / "gpu-toy.json")
    text = page(tmp_path)
    assert "toy sizes" in text
    assert all(f"| {row['candidate']} |" in text for row in (*document["encoder"], *document["server"]))


# A step's process: what it does is its name.
PROCESS = """
import os, sys, time
name, rows = sys.argv[1], sys.argv[2]
again = os.path.exists(rows)
os.makedirs(os.path.dirname(rows), exist_ok=True)
with open(rows, "a") as file:
    print('{"table": "server", "row": {"candidate": "%s", "batch": 1}}' % name, file=file)
if name == "dies once" and not again:
    os.kill(os.getpid(), 9)
if name == "hangs":
    time.sleep(600)
sys.exit(name == "fails")
"""


def test_a_step_that_dies_hangs_or_fails_leaves_the_others_and_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = {name: Step(lambda: None, 60, attempts=2) for name in ("dies once", "fails", "goes on")}  # type: ignore[arg-type, return-value]
    fake["hangs"] = Step(lambda: None, 1 / kit_run.DRY_PATIENCE, beside=True)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(kit_run, "STEPS", fake)
    monkeypatch.setattr(
        kit_run, "command", lambda step, context: [sys.executable, "-c", PROCESS, step, str(context.rows_file(step))]
    )
    assert not run(list(fake), tmp_path / "out", tmp_path / "work", 60, dry=True)
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    states = {row["step"]: row["state"] for row in document["steps"]}
    assert states == {"dies once": "done", "fails": "failed", "goes on": "done", "hangs": "time limit"}
    assert sorted(row["candidate"] for row in document["server"]) == sorted([*fake, "dies once"])


def test_unknown_steps_are_named_and_a_bench_brings_its_export() -> None:
    assert chosen("encoder-8B") == ("export-8B", "encoder-8B")
    assert chosen("") == tuple(STEPS)
    with pytest.raises(InputError, match="no such step"):
        chosen("encoder-3B")


def test_what_a_gpu_test_measured_is_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"when": "call", "outcome": "passed", "failed": False, "nodeid": "t.py::test_share", "duration": 1.0}
    done = SimpleNamespace(**outcome, user_properties=[("share_equal", 0.985)], longrepr=None)

    def one_test(options: list[str], plugins: list[Any]) -> int:
        assert options[:2] == ["-m", "gpu"]
        plugins[0].pytest_runtest_logreport(done)
        return 0

    rows: list[Any] = []
    monkeypatch.setattr(pytest, "main", one_test)
    run_gpu_tests(Context(Path(), dry=True), lambda table, row: rows.append(row))
    assert rows == [
        {"test": "t.py::test_share", "outcome": "passed", "seconds": 1.0, "figures": {"share_equal": 0.985}}
    ]


def test_a_row_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    whole = json.dumps({"table": "server", "row": {"batch": 1}}) + "\n"
    file.write_text(whole + whole[:20])
    assert read_rows(file) == [("server", {"batch": 1})]
