"""What an operator reads: the board's sensors, memory, and logs that keep prompts and pictures to themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from qwen3vl_edge.contract.machine.resident_memory import resident_bytes
from qwen3vl_edge.edge_runtime.daemon.sensors import powers, temperatures
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from tests.support.http_api.chat import data_uri, image, post_chat, text_of, user


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_sensors_of_a_jetson_and_of_a_pc(tmp_path: Path) -> None:
    """The trees are laid out as the kernel lays them out; INA3221 tells volts and amperes, not watts."""
    thermal, hwmon = tmp_path / "class" / "thermal", tmp_path / "class" / "hwmon"
    write(thermal / "thermal_zone0", type="cpu-thermal", temp="48250")
    write(thermal / "thermal_zone1", type="gpu-thermal", temp="")  # asleep
    write(hwmon / "hwmon0", name="ina3221", in1_input="5000", in1_label="VDD_IN", curr1_input="1200", in2_input="5000")
    write(hwmon / "hwmon1", name="amdgpu", power1_input="15000000", power1_label="PPT")
    assert [(item.sensor, item.value) for item in temperatures(tmp_path)] == [("cpu-thermal", 48.25)]
    assert [(item.sensor, item.value) for item in powers(tmp_path)] == [("ina3221 VDD_IN", 6.0), ("amdgpu PPT", 15.0)]
    assert temperatures(tmp_path / "none") == powers(tmp_path / "none") == []
    assert resident_bytes() > 2**20


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_are_json_and_keep_prompts_to_themselves(
    tmp_path: Path, bundle: Path, server_url: str, samples: Path, prompts: bool
) -> None:
    settings = f'log_format = "json"\nlog_prompts = {str(prompts).lower()}\n'
    picture = data_uri(samples / "colour.png")
    question = "What colour is the cross?"
    with running_daemon(tmp_path, bundle, server_url, settings) as running:
        chat = {"messages": [user(image(picture), question)], "max_tokens": 8}
        answer = post_chat(running.url, chat).json()
        text = text_of(answer)
        scraped = httpx.get(f"{running.url}/metrics").text
    assert "qwen3vl_edge_device_resident_memory_bytes" in scraped
    assert float(re.findall(r'encoder_memory_bytes{place="host"} (\S+)', scraped)[0]) > 2**20
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    (request,) = [line for line in lines if "request_id" in line]
    assert f"chatcmpl-{request['request_id']}" == answer["id"]
    assert request["media"][0]["grid"]
    assert request["tokens"] == answer["usage"]["completion_tokens"]
    whole = running.log.read_text()
    assert picture[40:120] not in whole
    assert (question in whole) == (text in whole) == prompts
