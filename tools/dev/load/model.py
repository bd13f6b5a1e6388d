"""A checkpoint of any size with random weights: as costly as a trained one, and nobody needs its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qwen3vl_edge.contract.bundle.checkpoint import PROCESSOR_FILES


def make_checkpoint(
    out: Path,
    reference: Path,
    layers: int,
    width: int,
    tower_layers: int,
    tower_width: int,
    head: int = 64,
    dtype: str = "float32",
    device: str = "cpu",
) -> Path:
    """Write a Qwen3-VL with random weights; tokenizer and processor are the reference checkpoint's.

    Its greedy answers are as long as they may be: the output layer's row of the end token is zero, and of many random
    logits the largest is above zero.

    Args:
        layers, width: of the language model; one key-value head for two, an MLP of three times the width.
        tower_layers, tower_width: of the vision encoder; heads of 64, an MLP of four times the width.
        head: width of the language model's heads.
        dtype: that it is written in, as torch names it.
        device: on which its weights are drawn.
    """
    import torch
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    values = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    values["text_config"] |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head,
        "num_key_value_heads": max(width // head // 2, 1),
        "head_dim": head,
        "intermediate_size": 3 * width,
    }
    values["text_config"]["rope_parameters"]["mrope_section"] = [3 * head // 16, 5 * head // 32, 5 * head // 32]
    values["vision_config"] |= {
        "hidden_size": tower_width,
        "depth": tower_layers,
        "num_heads": tower_width // 64,
        "intermediate_size": 4 * tower_width,
        "out_hidden_size": width,
        "deepstack_visual_indexes": sorted({tower_layers // 4, tower_layers // 2, tower_layers - 1}),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in PROCESSOR_FILES:
        if (reference / name).exists():
            shutil.copyfile(reference / name, out / name)
    (out / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(out)).to(getattr(torch, dtype))
    end = values["text_config"]["eos_token_id"]
    model.generation_config.eos_token_id = [end]
    with torch.no_grad():
        model.get_output_embeddings().weight[end] = 0
    model.save_pretrained(out)
    return out
