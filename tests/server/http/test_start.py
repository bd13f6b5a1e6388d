"""Starts that fail end with one line that says why."""

from __future__ import annotations

import socket
from pathlib import Path

from qwen3vl_edge.tools.server_process import spawn
from tests.support.server_checkpoint import make_checkpoint


def test_bad_model_and_taken_port_end_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        starts = [
            spawn(tmp_path / "0", 1, model=str(tmp_path)),
            spawn(tmp_path / "1", 1, model=str(make_checkpoint()), port=port),
            spawn(tmp_path / "2", 1, model=str(make_checkpoint()), attention="flash_attention_2"),
        ]
        assert [process.wait(60) for process in starts] == [1, 1, 1]
    wanted = ["config.json", f"port {port}", "flash"]
    for index, part in enumerate(wanted):
        lines = (tmp_path / str(index)).read_text().strip().splitlines()
        assert part in lines[-1].lower()
        assert lines[-1].startswith("error: ")
        assert not [line for line in lines if "Traceback" in line]
