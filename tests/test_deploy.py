"""The files of deploy/ name what is there: options and settings. What the images copy: tests/test_package.py."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_edge.edge_runtime.daemon.config import load_config
from qwen3vl_edge.server.options import load_options
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "qwen3vl-edge.service"


def test_the_settings_file_loads() -> None:
    config = load_config(ROOT / "deploy" / "edge.toml", {}, {})
    assert config.log_format == "json"


def test_the_servers_settings_file_loads() -> None:
    options = load_options(ROOT / "deploy" / "server.toml", {}, {})
    assert options.tokens_file is not None
    assert options.limits.max_media > 0


def test_the_unit_starts_what_the_command_line_knows(tmp_path: Path) -> None:
    unit = UNIT.read_text()
    found = re.search(r"^ExecStart=(.+)$", unit, re.M)
    assert found is not None
    _, *arguments = shlex.split(found[1])
    arguments[arguments.index("--config") + 1] = str(tmp_path / "none.toml")
    run = [sys.executable, "-m", "qwen3vl_edge", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, "none.toml cannot be read" in done.stderr) == (2, True)
    seconds = {name: int(re.search(rf"^{name}=(\d+)$", unit, re.M)[1]) for name in ("TimeoutStopSec", "WatchdogSec")}  # type: ignore[index]
    assert seconds["TimeoutStopSec"] > load_config(ROOT / "deploy" / "edge.toml", {}, {}).drain_s
    assert seconds["WatchdogSec"] >= 10


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian's package systemd)")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/qwen3vl-edge/bin/qwen3vl-edge", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
