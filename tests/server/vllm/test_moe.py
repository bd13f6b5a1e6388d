"""A Qwen3-VL with experts behind `--engine vllm`, two tensor-parallel workers: the unsplit model's answers.

It starts a vLLM of its own, so it runs when asked for: QWEN3VL_TEST_MOE=1.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE
from tests.support import server_checkpoint as tiny
from tests.support.vllm.engine_server import SETTINGS, running_vllm_engine
from tests.support.vllm.stock_server import needs_vllm
from tests.support.wire_bodies import body_of

HEAD_DIM = 32  # the least that vLLM's CPU attention takes
pytestmark = [
    pytest.mark.slow,
    needs_vllm,
    pytest.mark.skipif("QWEN3VL_TEST_MOE" not in os.environ, reason="starts a second vLLM: set QWEN3VL_TEST_MOE=1"),
]


def as_released(made: Path, folder: Path, reference: Path) -> Path:
    """The checkpoint as the released ones are: experts stored [E, in, out], and the processor's files beside them.

    transformers 5 writes [E, out, in] and reads both; vLLM 0.32 reads the released layout alone.
    """
    shutil.copytree(made, folder)
    weights = load_file(made / "model.safetensors")
    turned = {
        name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
        for name, tensor in weights.items()
    }
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        shutil.copy(reference / name, folder)
    return folder


def test_answers_are_the_unsplit_models(reference: Path, tmp_path: Path) -> None:
    folder = as_released(tiny.make_checkpoint(True, HEAD_DIM), tmp_path / "moe", reference)
    settings = SETTINGS.replace("max_model_len = 2048", f"max_model_len = {tiny.MAX_POSITIONS}")
    with running_vllm_engine(folder, tmp_path, settings) as server:
        assert httpx.get(f"{server.url}/readyz").json()["vision_parameters_loaded"] == 0
        for name in tiny.CASE_NAMES:
            case = tiny.make_case(name, True, head_dim=HEAD_DIM)
            found = httpx.post(
                f"{server.url}/v1/generate",
                content=body_of(case.request),
                headers={"Content-Type": CONTENT_TYPE},
                timeout=120,
            )
            assert found.status_code == 200, found.text
            assert found.json()["generated_ids"] == tiny.oracle(True, HEAD_DIM).greedy(case, 12), name
