"""Train the reference checkpoint.

python -m qwen3vl_edge.tools.dev.train_reference.train --work WORK --out reference/qwen3vl-tiny
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream

from qwen3vl_edge.tools.dev.train_reference.auxiliary import AuxiliaryHeads, look_loss
from qwen3vl_edge.tools.dev.train_reference.batches import Batch, Vocabulary, make_batch, training_batch
from qwen3vl_edge.tools.dev.train_reference.layout import write_layout
from qwen3vl_edge.tools.dev.train_reference.model import (
    Attended,
    answer_logits,
    answer_loss,
    batched_vision_attention,
    encode,
    new_model,
    right_answers,
)
from qwen3vl_edge.tools.dev.train_reference.tensors import TensorBatch, on_device

LOOKING = 0.3
"""Weight of the losses on attention, beside the language loss."""
VALIDATION = (
    ("colour", "objects", (128, 128)),
    ("shape", "objects", (160, 128)),
    ("count", "objects", (128, 160)),
    ("where", "objects", (160, 160)),
    ("relation", "objects", (128, 192)),
    ("number", "number", (128, 160)),
    ("compare", "pair", (128, 128)),
    ("motion", "clip", (96, 128)),
    ("first_colour", "clip", (96, 96)),
)


class Steps(Dataset[Batch]):
    """Batch by step number, so that a resumed run sees what an unbroken one would."""

    def __init__(self, args: argparse.Namespace, layout: Path, first: int) -> None:
        self.args, self.layout, self.first = args, layout, first

    def __len__(self) -> int:
        return int(self.args.steps) - self.first

    def __getitem__(self, index: int) -> Batch:
        step = self.first + index
        level, warm = curriculum(step, self.args), step < self.args.warm
        return training_batch(self.args.seed, step, self.layout, level, self.args.batch, warm)


def curriculum(step: int, args: argparse.Namespace) -> float:
    """1 while the encoder warms up, then 0 to 1 over the first 15 % of the joint steps."""
    if step < args.warm:
        return 1.0
    joint: float = (step - args.warm) / (0.15 * (args.steps - args.warm))
    return min(1.0, joint)


def learning_rate(step: int, done: float, args: argparse.Namespace) -> float:
    """Linear warm-up, flat, then cosine to zero over the last 60 %; `done` is the share of the run, 0 to 1."""
    decay = 1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.4) / 0.6)))
    return float(args.lr * min(1.0, (step + 1) / 200) * max(decay, 0.01))


def validate(model: Any, vocabulary: Vocabulary, seed: int, count: int) -> dict[str, float]:
    """Greedy accuracy per task on seeds that training never uses, and over all of them without one DeepStack level."""
    scores: dict[str, float] = {}
    without: dict[str, list[float]] = defaultdict(list)
    model.eval()
    with torch.inference_mode():
        for task, kind, size in VALIDATION:
            rng = random.Random(f"validation {task} {seed}")
            batch = on_device(make_batch(rng, vocabulary, kind, size, count, 1.0, 1, task), model.device)
            encoded = encode(model, batch)
            scores[task] = sum(right_answers(answer_logits(model, batch, encoded), batch)) / count
            levels = encoded.deepstack_features
            for index in range(len(levels)):
                encoded.deepstack_features = [f * 0 if index == i else f for i, f in enumerate(levels)]
                answers = right_answers(answer_logits(model, batch, encoded), batch)
                without[f"without_{index}"].append(sum(answers) / count)
    model.train()
    return scores | {name: sum(values) / len(values) for name, values in without.items()}


def run(args: argparse.Namespace) -> None:
    """Train, with a line of figures every `--log` steps and a checkpoint at each validation."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    upstream.Qwen3VLVisionAttention.forward = batched_vision_attention
    args.work.mkdir(parents=True, exist_ok=True)
    layout = args.work / "layout"
    if not (layout / "tokenizer.json").exists():
        write_layout(layout)
    vocabulary = Vocabulary(layout)
    model = new_model(layout, args.seed).to(device)
    heads = AuxiliaryHeads(vocabulary, model.config.text_config.hidden_size).to(device)
    optimizer = new_optimizer([*model.parameters(), *heads.parameters()], args.lr)
    first, seconds = resume(args.work / "state.pt", model, heads, optimizer)
    started = time.time() - seconds
    loader = DataLoader(Steps(args, layout, first), batch_size=None, num_workers=1, prefetch_factor=4)
    figures: dict[str, list[float]] = defaultdict(list)
    bar = tqdm(total=args.steps, initial=first, unit="step", disable=None)  # silent where nobody watches
    for step, batch in enumerate(loader, start=first):
        seconds = time.time() - started
        done = max(step / args.steps, seconds / (60 * args.minutes) if args.minutes else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, args)
        train_step(model, heads, optimizer, on_device(batch, device), step, args, figures)
        bar.update()
        if (step + 1) % args.log == 0:
            report(bar, figures, step + 1, seconds)
        last = step + 1 == args.steps or done >= 1.0
        if (step + 1) % args.validate == 0 or last:
            if step >= args.warm:
                scores = validate(model, vocabulary, seed=0, count=args.questions)
                bar.write("  validation " + " ".join(f"{k}={v:.2f}" for k, v in scores.items()))
            save(args.work / "state.pt", model, heads, optimizer, step + 1, time.time() - started)
            release(model, layout, args.out)
        if last:
            break


def new_optimizer(parameters: list[Any], rate: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def train_step(
    model: Any,
    heads: Any,
    optimizer: Any,
    batch: TensorBatch,
    step: int,
    args: argparse.Namespace,
    figures: dict[str, list[float]],
) -> None:
    """One step: the auxiliary loss always, the language loss once the encoder is warm."""
    joint = step >= args.warm
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=args.bf16):
        encoded = encode(model, batch)
        auxiliary, accuracies = heads(encoded, model.model.language_model.embed_tokens.weight, batch)
        weight = 1.0 if not joint else 0.5
        loss = auxiliary * weight
        if joint:
            attended: Attended = {}
            language = answer_loss(answer_logits(model, batch, encoded, attended), batch)
            looking, share = look_loss(attended, batch)
            reading = heads.read(attended, model.model.language_model.embed_tokens.weight, batch)
            loss = loss + language + LOOKING * (looking + reading)
            figures["reading"].append(reading.item())
            figures["language"].append(language.item())
            if not math.isnan(share):
                figures["looking"].append(share)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
    optimizer.step()
    figures["auxiliary"].append(auxiliary.item())
    for name, value in zip(("colour", "shape", "digit", "centre"), accuracies, strict=True):
        if not math.isnan(value):
            figures[name].append(value)


def report(bar: Any, figures: dict[str, list[float]], step: int, seconds: float) -> None:
    """One line: the step, minutes so far, and the mean of each figure since the last line."""
    means = " ".join(f"{name}={sum(values) / len(values):.3f}" for name, values in figures.items())
    bar.write(f"step {step} minute {seconds / 60:.1f} {means}")
    figures.clear()


def resume(path: Path, model: Any, heads: Any, optimizer: Any) -> tuple[int, float]:
    """Load the state that a run left; the next step, and the seconds that the run has had."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])


def save(path: Path, model: Any, heads: Any, optimizer: Any, step: int, seconds: float) -> None:
    """Write what `resume` reads, whole or not at all."""
    state = {
        "model": model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def release(model: Any, layout: Path, out: Path) -> None:
    """Write the checkpoint in fp16 beside its layout, file by file, weights last."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.to("cpu", torch.float16).contiguous().clone()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    for file in layout.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((layout / "config.json").read_text()) | {"dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(state, out / "new.safetensors", metadata={"format": "pt"})
    (out / "new.safetensors").replace(out / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, default=0.0, help="End then, earlier runs included; 0: no limit.")
    parser.add_argument("--warm", type=int, default=800)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", help="cpu, cuda, …; a GPU is taken where there is one.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=int, default=50)
    parser.add_argument("--validate", type=int, default=400)
    parser.add_argument("--questions", type=int, default=48, help="Of each task, at each validation.")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
