"""The encoder as transformers runs it: what the split replaces."""

from __future__ import annotations

from functools import partial
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.processor import processor
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting


def peers() -> list[Peer]:
    """Eager with sdpa and compiled, in float32 and bfloat16; on the GPU where there is one, flash attention too."""
    peers = []
    for dtype in ("fp32", "bf16"):
        peers.append(Peer(f"pytorch {dtype}", dtype, partial(_load, dtype, False, "sdpa")))
        peers.append(Peer(f"pytorch {dtype} compiled", dtype, partial(_load, dtype, True, "sdpa")))
    peers.append(Peer("pytorch bf16 flash attention 2", "bf16", partial(_load, "bf16", False, "flash_attention_2")))
    return peers


def refuse_emulated_bf16(device: Any, dtype: str) -> None:
    """Refuse what would only cost time.

    Raises:
        InputError: bfloat16 on a CPU that has none.
    """
    import torch

    # oneDNN multiplies it with AVX-512, and on Arm with the extension of its name.
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512") or "bf16" in " ".join(processor()).split()
    if dtype == "bf16" and device.type == "cpu" and not fast:
        raise InputError("this CPU has no bfloat16; PyTorch emulates it, hundreds of times slower", field="dtype")


def _load(dtype: str, compiled: bool, attention: str, setting: Setting) -> Candidate:
    import torch

    from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder

    if setting.threads:
        torch.set_num_threads(setting.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refuse_emulated_bf16(device, dtype)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    encoder: Any = load_torch_encoder(open_checkpoint(str(setting.model))).to(device, kind)
    if attention != "sdpa":
        encoder.set_attn_implementation(attention)
    if compiled:
        encoder = torch.compile(encoder)
    places = torch.tensor([setting.grid.as_list()], device=device)

    def run(pixels: Pixels) -> Outputs:
        with torch.inference_mode():
            output = encoder(torch.from_numpy(pixels).to(device, kind), grid_thw=places)
            return [tensor.float().cpu().numpy() for tensor in (output.pooler_output, *output.deepstack_features)]

    def device_seconds(pixels: Pixels) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(pixels)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return Candidate(run, device_seconds if device.type == "cuda" else None)
