"""The calculator: stages add up, links behave as links do, and the command says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.packing import PACKINGS
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, pack_media
from qwen3vl_edge.tools.cli.main import app, main
from qwen3vl_edge.tools.plan.paths import HEADER_BYTES, Pictures, Speeds, break_even_mbit, embedding_bytes, predict
from qwen3vl_edge.tools.plan.transfer import FIRST_WINDOW, LinkSpeed, transfer_seconds

PICTURES = Pictures(tokens=196, width=2048, levels=3, file_bytes=60_000)
SPEEDS = Speeds(device_encode=0.05, server_encode=0.1, server_prefill=0.08, device_prefill=4.0)


@given(st.integers(0, 10**8), st.floats(0.1, 1e5), st.floats(0, 0.5))
def test_no_link_is_faster_than_its_rate_and_its_round_trip(size: int, mbit: float, rtt_s: float) -> None:
    link = LinkSpeed(mbit, rtt_s)
    seconds = transfer_seconds(size, link)
    assert seconds >= size / link.bytes_per_second + 2 * rtt_s - 1e-9
    assert seconds <= size / link.bytes_per_second + 40 * rtt_s + 1e-9
    assert transfer_seconds(size + 10_000, link) >= seconds


def test_a_body_of_one_window_takes_two_round_trips() -> None:
    link = LinkSpeed(1e6, 0.1)
    assert transfer_seconds(FIRST_WINDOW, link) == pytest.approx(0.2, abs=1e-3)
    assert transfer_seconds(3 * FIRST_WINDOW, link) == pytest.approx(0.3, abs=1e-3)  # one window, then twice as much
    assert transfer_seconds(7 * FIRST_WINDOW, link) == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("name", ["fp16", "int8", "int8-int4", "int4"])
def test_bytes_are_those_of_a_real_request(name: str) -> None:
    arrays = [np.ones((196, 2048), np.float16)] * 4
    item = MediaEmbeddings("image", Grid(1, 28, 28), arrays[0], tuple(arrays[1:]))
    item = item if name == "fp16" else pack_media(item, PACKINGS[name])
    request = GenerateRequest(None, np.zeros(220, np.int64), (item,))
    sent = encode_request(request).size
    assert embedding_bytes(PICTURES, name) == pytest.approx(sent, abs=HEADER_BYTES + 2_000)


def test_the_ways_add_up_and_the_fastest_is_first() -> None:
    found = predict(PICTURES, SPEEDS, LinkSpeed(50, 0.02))
    assert {item.name for item in found} == {
        "split fp16",
        "split int8",
        "split int4",
        "unsplit server",
        "all on the device",
    }
    assert [item.seconds for item in found] == sorted(item.seconds for item in found)
    assert all(item.seconds == pytest.approx(sum(item.stages.values())) for item in found)
    assert found[-1].name == "all on the device"
    assert found[-1].sent_bytes == 0


def test_the_link_at_which_both_are_as_fast() -> None:
    even = break_even_mbit(PICTURES, SPEEDS, 0.002)
    assert even is not None
    for mbit, first in ((even * 1.1, True), (even / 1.1, False)):
        seconds = {item.name: item.seconds for item in predict(PICTURES, SPEEDS, LinkSpeed(mbit, 0.002))}
        assert (seconds["split fp16"] < seconds["unsplit server"]) is first
    # With a longer round trip the window's growth alone costs a large body more than the device saves.
    assert break_even_mbit(PICTURES, SPEEDS, 0.02) is None
    slow_device = Speeds(device_encode=5.0, server_encode=0.1, server_prefill=0.1)
    assert break_even_mbit(PICTURES, slow_device, 0.02) is None
    huge_files = Pictures(196, 2048, 3, 50_000_000)
    assert break_even_mbit(huge_files, SPEEDS, 0.002) == 0.0


ARGUMENTS = ["--link-mbit", "50", "--rtt-ms", "20", "--server-encode-ms", "40", "--server-prefill-ms", "80"]


def test_the_command_measures_what_it_is_not_told(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "--bundle", str(bundle), *ARGUMENTS, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["device_encode_measured_here"] is True
    assert found["speeds"]["device_encode"] > 0
    assert [item["name"] for item in found["ways"]] != []
    told = CliRunner().invoke(
        app, ["plan", "--bundle", str(bundle), *ARGUMENTS, "--device-encode-ms", "7", "--image", "64x64", "--json"]
    )
    given_values = json.loads(told.stdout)
    assert given_values["speeds"]["device_encode"] == 0.007
    assert given_values["pictures"]["tokens"] == 4


def test_the_table_names_the_winner_and_the_break_even(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "--bundle", str(bundle), *ARGUMENTS, "--device-encode-ms", "7"])
    assert result.exit_code == 0, result.output
    assert "split int8" in result.output
    assert "is as fast as the unsplit server" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--image", "12"], "--image"), (["--image", "axb"], "--image")],
)
def test_bad_input_is_one_line(
    bundle: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["qwen3vl-edge", "plan", "--bundle", str(bundle), *ARGUMENTS, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(captured.strip().splitlines()) == 1
    assert said in captured or "size" in captured


def test_no_such_bench_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["qwen3vl-edge", "bench", "nothing"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no such bench" in capsys.readouterr().err
