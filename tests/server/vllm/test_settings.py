"""What of the vLLM engine needs no vLLM: settings, arguments, sampling, probabilities, checks of clips."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError, LimitError, WireError
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling
from qwen3vl_edge.server.engines.checkpoint_config import model_shape
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.vllm.arguments import RESERVED, engine_arguments
from qwen3vl_edge.server.engines.vllm.checks import check_clips, check_request
from qwen3vl_edge.server.engines.vllm.model import VllmModel
from qwen3vl_edge.server.engines.vllm.sampling import sampling_arguments, token_of
from qwen3vl_edge.server.options import ServerOptions, load_options
from tests.support import server_checkpoint as tiny
from tests.support.paths import ROOT

KNOWN = ("block_size", "enforce_eager", "quantization", "hf_overrides", "tensor_parallel_size")


def options(**changes: Any) -> ServerOptions:
    return ServerOptions(model="none", engine="vllm", **changes)


def test_settings_become_arguments() -> None:
    checkpoint = open_checkpoint(str(tiny.make_checkpoint()))
    found = engine_arguments(checkpoint, options(tensor_parallel=4, vllm_args={"block_size": 32}), KNOWN)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"], found["block_size"]) == (4, 1, 32)
    assert found["dtype"] == "float32"  # as the checkpoint says; vLLM's "auto" would make 16 bits of it
    assert found["limit_mm_per_prompt"] == {"image": 0, "video": 0}
    assert found["distributed_executor_backend"] is None
    assert set(found) - {"block_size", "mm_processor_cache_gb", "served_model_name"} <= set(RESERVED)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blok_size", "Did you mean block_size?"),
        ("tensor_parallel_size", "of vLLM itself"),
        ("hf_overrides", "of vLLM itself"),
    ],
)
def test_further_arguments_are_checked_by_name(name: str, said: str) -> None:
    checkpoint = open_checkpoint(str(tiny.make_checkpoint()))
    with pytest.raises(InputError, match=said) as caught:
        engine_arguments(checkpoint, options(vllm_args={name: 1}), KNOWN)
    assert caught.value.field == f"vllm_args.{name}"


@pytest.mark.parametrize("changes", [{"device_map": "cuda:1"}, {"attention": "eager"}])
def test_settings_of_the_other_engine_are_refused(changes: dict[str, str]) -> None:
    checkpoint = open_checkpoint(str(tiny.make_checkpoint()))
    with pytest.raises(InputError, match="transformers engine only"):
        engine_arguments(checkpoint, options(**changes), KNOWN)


def test_further_arguments_come_as_a_table_or_as_text(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('model = "m"\n[vllm_args]\nblock_size = 32\n')
    assert load_options(file, {}, {}).vllm_args == {"block_size": 32}
    environment = {"QWEN3VL_SERVER_VLLM_ARGS": '{"enforce_eager": true}'}
    assert load_options(file, {}, environment).vllm_args == {"enforce_eager": True}
    for text in ("[1]", "no JSON"):
        with pytest.raises(InputError, match="JSON object"):
            load_options(file, {}, {"QWEN3VL_SERVER_VLLM_ARGS": text})


@pytest.mark.parametrize("changes", [{"engine": "sglang"}, {"distributed_backend": "mpi"}, {"tensor_parallel": 0}])
def test_unknown_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServerOptions(model="m", **changes)


def test_without_vllm_the_server_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "qwen3vl_edge", "server", "--engine", "vllm"]
    command += ["--model", str(ROOT / "reference" / "qwen3vl-tiny"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "environment" in done.stderr
    assert "docs/guides/server/vllm.md" in done.stderr


def request(sampling: Sampling | None = None, **changes: Any) -> GenerateRequest:
    ids = np.array([1, 2], dtype=np.int64)
    return GenerateRequest(None, ids, sampling=sampling or Sampling(), **changes)


def test_greedy_leaves_nothing_to_defaults() -> None:
    found = sampling_arguments(request(Sampling(max_new_tokens=7, temperature=0.3, top_k=5, seed=1)), (9, 8))
    assert (found["temperature"], found["top_p"], found["top_k"], found["min_p"]) == (0.0, 1.0, 0, 0.0)
    assert (found["stop_token_ids"], found["ignore_eos"], found["max_tokens"]) == ([9, 8], True, 7)
    assert (found["logprobs"], found["detokenize"]) == (None, False)
    assert (found["presence_penalty"], found["frequency_penalty"], found["logit_bias"]) == (0.0, 0.0, None)


def test_sampling_is_handed_on() -> None:
    sampling = Sampling(
        do_sample=True, temperature=0.7, top_p=0.9, top_k=0, min_p=0.1, repetition_penalty=1.2, seed=2**63 - 1
    )
    sampling = replace(sampling, presence_penalty=-1.5, frequency_penalty=0.5, logit_bias=((3, 4.5), (7, -100.0)))
    found = sampling_arguments(request(sampling, logprobs=4), (9,))
    assert (found["temperature"], found["top_p"], found["top_k"], found["min_p"]) == (0.7, 0.9, 0, 0.1)
    assert (found["repetition_penalty"], found["seed"], found["logprobs"]) == (1.2, 2**63 - 1, 4)
    assert (found["presence_penalty"], found["frequency_penalty"]) == (-1.5, 0.5)
    assert found["logit_bias"] == {3: 4.5, 7: -100.0}


def test_tokens_with_and_without_probabilities() -> None:
    def place(logprob: float, rank: int) -> SimpleNamespace:
        return SimpleNamespace(logprob=logprob, rank=rank)

    places = {7: place(-3.0, 5), 2: place(-0.5, 2), 1: place(-0.1, 1)}
    assert token_of(7, places, 2) == Token(7, -3.0, ((1, -0.1), (2, -0.5)))
    assert token_of(7, places, 0) == Token(7, -3.0)
    assert token_of(7, None, None) == Token(7)


@pytest.fixture(scope="module")
def loaded() -> VllmModel:
    checkpoint = open_checkpoint(str(tiny.make_checkpoint()))
    config = checkpoint.config
    return VllmModel(
        name="tiny",
        tokenizer=None,
        shape=model_shape(checkpoint),
        end_ids=(0,),
        vision_start_id=config["vision_start_token_id"],
        vision_end_id=config["vision_end_token_id"],
        max_positions=512,
        max_medium_tokens=8,
        max_logprobs=20,
        vision_parameters=10,
        workers=({"vision_parameters": 0, "parameters": 5, "device": "cpu", "dtype": "float32"},) * 2,
        settings={"vllm": "0"},
    )


def test_what_the_workers_counted_is_told(loaded: VllmModel) -> None:
    found = loaded.describe()
    assert (found["parameters"], found["vision_parameters_not_loaded"], found["workers"]) == (10, 10, 2)
    held = replace(loaded, workers=({"vision_parameters": 3, "parameters": 5, "device": "cpu", "dtype": "float32"},))
    assert held.describe()["vision_parameters_loaded"] == 3
    assert held.describe()["vision_parameters_not_loaded"] == 0


def clip_request(loaded: VllmModel, between: tuple[int, ...], grid: Grid = Grid(2, 2, 4)) -> GenerateRequest:
    """A clip of two frames of two tokens each, with `between` after the first frame's last token."""
    start, end, pad = loaded.vision_start_id, loaded.vision_end_id, loaded.shape.video_token_id
    ids = [30, start, pad, pad, *between, pad, pad, end, 31]
    rows = np.zeros((grid.tokens(2), loaded.shape.hidden_size), dtype=np.float32)
    media = (MediaEmbeddings("video", grid, rows, (rows,) * loaded.shape.deepstack_levels),)
    return GenerateRequest(None, np.array(ids, dtype=np.int64), media)


def test_frames_are_found_by_their_markers(loaded: VllmModel) -> None:
    start, end = loaded.vision_start_id, loaded.vision_end_id
    for between in ((end, 40, 41, start), (end, start)):
        check_request(clip_request(loaded, between), loaded)
    picture = loaded.shape.image_token_id
    for between in ((40, 41), (end, 40), (40, start), (end, start, 40, start), (end, 40, end, start)):
        with pytest.raises(WireError, match="by which vLLM finds them"):
            check_request(clip_request(loaded, between), loaded)
    with pytest.raises(WireError, match="by which vLLM finds them"):
        check_clips(clip_request(loaded, (end, picture, start)), loaded)


def test_bounds_of_vllm_are_named(loaded: VllmModel) -> None:
    for temperature in (0.005, 2.5):
        with pytest.raises(WireError, match=r"0\.01 to 2"):
            check_request(request(Sampling(do_sample=True, temperature=temperature)), loaded)
    check_request(request(Sampling(temperature=5.0)), loaded)  # not used where nothing is drawn
    with pytest.raises(LimitError, match="max_logprobs"):
        check_request(request(logprobs=21), loaded)
    small = replace(loaded, max_medium_tokens=3)
    with pytest.raises(LimitError, match="max_num_batched_tokens"):
        check_request(clip_request(loaded, (loaded.vision_end_id, loaded.vision_start_id)), small)
