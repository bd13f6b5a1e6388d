"""`qwen3vl-edge build` as a user meets it: real processes, Ctrl-C, one line and exit code 2 for bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.export.tensorrt.targets import TARGETS
from tests.support.run_cli import run_process


def test_cli_builds_and_inspects(fresh: Path) -> None:
    arguments = [
        "build",
        str(fresh),
        "--target",
        "rtx-portable",
        "--buckets",
        "128x128,96x128",
        "--workspace",
        "512MiB",
        "--report",
    ]
    done = run_process(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["plans"][0]["buckets"] == ["1x8x8", "1x6x8"]
    assert record["skipped"] is False
    (plan,), counts = record["plans"], record["kernels"]
    assert [row["bucket"] for row in counts] == plan["buckets"]
    assert all(row["fused_attention"] == row["blocks"] == 6 for row in counts)
    again = run_process(*arguments)
    assert "nothing changed" in again.stdout
    shown = run_process("inspect", str(fresh))
    assert shown.returncode == 0, shown.stderr
    assert "rtx-portable" in shown.stdout
    assert "Kernels of rtx-portable fp16" in shown.stdout
    assert "6 of 6" in shown.stdout
    assert json.loads(run_process("inspect", str(fresh), "--json").stdout)["engines"][0]["target"] == "rtx-portable"


@pytest.mark.usefixtures("heeds_ctrl_c")  # a caught signal is default again in a new process, an ignored one not
def test_cli_interrupted(fresh: Path) -> None:
    many = ",".join(f"{32 * rows}x{32 * columns}" for rows in range(2, 9) for columns in range(2, 7))
    command = [sys.executable, "-m", "qwen3vl_edge", "build", str(fresh), "--target", "desktop-ada", "--buckets", many]
    before = sorted(fresh.rglob("*.plan"))
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "libtensorrt_rtx" not in Path(f"/proc/{running.pid}/maps").read_text():
        time.sleep(0.05)  # from when the library is loaded it parses, then builds for many seconds
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, "")
    assert "interrupted; the bundle is unchanged" in err
    assert sorted(fresh.rglob("*.plan")) == before
    open_bundle(fresh)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "nope"], "no such target"),
        (["--target", "desktop-ada", "--workspace", "lots"], "--workspace"),
        (["--target", "desktop-ada", "--buckets", "100x100"], "100"),
    ],
)
def test_cli_errors_are_one_line_and_exit_2(ada: Bundle, arguments: list[str], words: str) -> None:
    done = run_process("build", str(ada.path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1


def test_cli_lists_targets() -> None:
    done = run_process("build", "--list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["target"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(TARGETS)
    assert rows["rtx-portable"]["built_here"]
