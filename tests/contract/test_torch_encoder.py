"""The vision encoder out of a checkpoint: its own weights in any dtype, and a clear error for what is not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.tools.dev.random_checkpoint import encoder_checkpoint

SMALL = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "deepstack_visual_indexes": [0, 1, 2]}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_weights_are_the_checkpoint_s(stored: torch.dtype, loaded: torch.dtype, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoint(tmp_path, stored, **SMALL)
    encoder = load_torch_encoder(open_checkpoint(str(checkpoint.path)), dtype=loaded)
    assert not encoder.training
    expected = checkpoint.encoder.state_dict()
    state = encoder.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == loaded, name
        assert torch.equal(value, expected[name].to(loaded)), name
    frequencies = encoder.rotary_pos_emb.inv_freq
    assert torch.equal(frequencies, checkpoint.encoder.rotary_pos_emb.inv_freq)  # computed, in fp32 whatever the dtype


def test_a_dtype_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = encoder_checkpoint(tmp_path, **SMALL).path
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    next(entry for name, entry in sorted(header.items()) if name.endswith("attn.proj.bias"))["dtype"] = "I32"
    table = json.dumps(header).encode()
    file.write_bytes(len(table).to_bytes(8, "little") + table + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj\.bias.*dtype"):
        load_torch_encoder(open_checkpoint(str(path)))


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    path = encoder_checkpoint(tmp_path, **SMALL).path
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["depth"] = 4
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.3"):
        load_torch_encoder(open_checkpoint(str(path)))
