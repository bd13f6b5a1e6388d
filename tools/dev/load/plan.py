"""What a fleet needs: links, servers, storage; on paper, then by simulation.

python -m qwen3vl_edge.tools.dev.load.plan --devices 10000 --asks-per-minute 1

The costs of prompts and steps are computed from the model's size and the accelerator's peak rates (--help names the
defaults and where they come from): nothing here was measured on such a machine. With figures of your own server
(`python -m qwen3vl_edge.tools.dev.load.run`), give --prompt-token-us, --step-ms and --step-row-us instead.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from qwen3vl_edge.tools.dev.load.figures import percentiles
from qwen3vl_edge.tools.dev.load.simulate import Costs, Traffic, simulate

SIMULATED_SECONDS = 120.0
ENOUGH_REQUESTS = 4000


@dataclass(frozen=True)
class Model:
    """A language model on one replica of a server.

    Attributes:
        parameters: all of them, held in memory.
        active: that one token uses (fewer in a mixture of experts).
        width, layers, kv_heads, head_width: of the hidden states and of keys and values.
        gpus: of one replica.
    """

    parameters: float
    active: float
    width: int
    layers: int
    kv_heads: int
    head_width: int
    gpus: int


# From the released checkpoints' config.json (Qwen/Qwen3-VL-…-Instruct).
MODELS = {
    "2B": Model(1.7e9, 1.7e9, 2048, 28, 8, 128, 1),
    "8B": Model(8.2e9, 8.2e9, 4096, 36, 8, 128, 1),
    "32B": Model(32.8e9, 32.8e9, 5120, 64, 8, 128, 2),
    "30B-A3B": Model(30.5e9, 3.3e9, 2048, 48, 4, 128, 1),
    "235B-A22B": Model(235e9, 22e9, 4096, 94, 4, 128, 8),
}


@dataclass(frozen=True)
class Accelerator:
    """Peak rates, and the shares of them that serving reaches; the shares are assumptions.

    Attributes:
        flops: bf16, dense. bandwidth: bytes per second of its memory.
    """

    flops: float
    bandwidth: float
    prefill_share: float = 0.45
    decode_share: float = 0.6


# Vendor's data sheets: H100 SXM 989 Tflop/s dense bf16, 3.35 TB/s; H200 4.8 TB/s; L40S 362 Tflop/s, 0.864 TB/s.
ACCELERATORS = {
    "H100": Accelerator(989e12, 3.35e12),
    "H200": Accelerator(989e12, 4.8e12),
    "L40S": Accelerator(362e12, 0.864e12),
}


def costs_of(model: Model, accelerator: Accelerator, context: int, max_batch: int) -> Costs:
    """Two operations per active parameter and prompt token; a step reads the weights once, and each request's keys
    and values (bf16). In a mixture of experts a full batch touches all experts, so all weights are read."""
    kv = 2 * model.layers * model.kv_heads * model.head_width * 2
    flops = accelerator.flops * accelerator.prefill_share * model.gpus
    bandwidth = accelerator.bandwidth * accelerator.decode_share * model.gpus
    return Costs(2 * model.active / flops, 2 * model.parameters / bandwidth, kv * context / bandwidth, max_batch)


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Links, servers and storage of a fleet."""
    model = MODELS[arguments.model]
    per_second = arguments.devices * arguments.asks_per_minute / 60
    sent = arguments.visual_tokens * model.width * 2 * 4 * (1 - arguments.by_hash)  # embeddings and three levels, fp16
    prompt = arguments.visual_tokens + arguments.text_tokens
    costs = costs_of(model, ACCELERATORS[arguments.accelerator], prompt + arguments.new_tokens, arguments.max_batch)
    if arguments.prompt_token_us is not None:
        row, step = arguments.step_row_us / 1e6, arguments.step_ms / 1e3
        costs = Costs(arguments.prompt_token_us / 1e6, step, row, arguments.max_batch)
    servers, outcome = fewest_servers(costs, per_second, prompt, arguments.new_tokens, arguments.first_token_s)
    held = (
        arguments.hold_minutes * per_second * 60 * (1 - arguments.by_hash) * arguments.visual_tokens * model.width * 8
    )
    return {
        "requests_per_second": round(per_second, 2),
        "bytes_per_request": round(sent),
        "device_uplink_mbit": round(sent * 8 * arguments.asks_per_minute / 60 / 1e6, 3),
        "server_ingress_gbit": round(per_second * sent * 8 / 1e9, 2),
        "replicas": servers,
        "gpus": servers * model.gpus,
        "embeddings_held_gb": round(held / 1e9, 1),
        "embeddings_held_gb_per_replica": round(held / 1e9 / servers, 1),
        "costs": asdict(costs),
        **outcome,
    }


def fewest_servers(
    costs: Costs, per_second: float, prompt: int, new: int, first_token_s: float
) -> tuple[int, dict[str, Any]]:
    """The fewest replicas at which 95 of 100 first tokens come in time and nothing is refused, by simulation.

    Raises:
        SystemExit: a prompt alone takes longer.
    """
    if prompt * costs.prompt_token_s > first_token_s:
        raise SystemExit(f"a prompt of {prompt} tokens takes {prompt * costs.prompt_token_s:.2f} s by itself")
    low = max(1, math.floor(per_second * (prompt * costs.prompt_token_s)))
    high = low
    while not _holds(outcome := _outcome(costs, per_second / high, prompt, new), first_token_s):
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        candidate = _outcome(costs, per_second / middle, prompt, new)
        if _holds(candidate, first_token_s):
            high, outcome = middle, candidate
        else:
            low = middle + 1
    return high, outcome


def _holds(outcome: dict[str, Any], first_token_s: float) -> bool:
    times = outcome["first_token_s"]
    return not outcome["refused"] and bool(times) and times["p95"] <= first_token_s


def _outcome(costs: Costs, per_second: float, prompt: int, new: int) -> dict[str, Any]:
    seconds = max(SIMULATED_SECONDS, ENOUGH_REQUESTS / per_second)
    outcome = simulate(costs, Traffic(per_second, prompt, new), seconds)
    return {
        "first_token_s": percentiles(outcome.first_token_s),
        "between_tokens_s": percentiles(outcome.between_tokens_s),
        "busy": round(outcome.busy, 3),
        "mean_batch": round(outcome.mean_batch, 1),
        "refused": round(outcome.refused, 4),
    }


def main() -> None:
    """Print the plan as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--asks-per-minute", type=float, default=1.0, help="of each device")
    parser.add_argument("--model", choices=MODELS, default="8B")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="H100")
    parser.add_argument("--visual-tokens", type=int, default=196, help="of a request; a 448x448 picture has 196")
    parser.add_argument("--text-tokens", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--by-hash", type=float, default=0.0, help="share of pictures that the server holds already")
    parser.add_argument("--hold-minutes", type=float, default=10.0, help="how long embeddings are held")
    parser.add_argument("--first-token-s", type=float, default=1.0, help="95 of 100 first tokens within this")
    parser.add_argument("--prompt-token-us", type=float, help="measured, in place of the computed costs")
    parser.add_argument("--step-ms", type=float, default=20.0, help="measured")
    parser.add_argument("--step-row-us", type=float, default=0.0, help="measured")
    print(json.dumps(plan(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
