"""Train the reference checkpoint.

python -m tools.train_reference.train --work WORK --out reference/qwen3vl-tiny
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
from transformers.models.qwen3_vl import modeling_qwen3_vl as upstream

from tools.train_reference.batches import Batch, Vocabulary, make_batch, training_batch
from tools.train_reference.layout import write_layout
from tools.train_reference.model import (
    AuxiliaryHeads,
    answer_logits,
    answer_loss,
    batched_vision_attention,
    encode,
    new_model,
    right_answers,
)

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
        return training_batch(self.args.seed, step, self.layout, curriculum(step, self.args), self.args.batch)


def curriculum(step: int, args: argparse.Namespace) -> float:
    """0 while the encoder warms up, then to 1 over the first 30 % of the joint steps."""
    if step < args.warm:
        return 0.5
    joint: float = (step - args.warm) / (0.3 * (args.steps - args.warm))
    return min(1.0, joint)


def learning_rate(step: int, done: float, args: argparse.Namespace) -> float:
    """Linear warm-up, flat, then cosine to zero over the last 60 %; `done` is the share of the run, 0 to 1."""
    decay = 1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.4) / 0.6)))
    return float(args.lr * min(1.0, (step + 1) / 200) * max(decay, 0.01))


def validate(model: Any, vocabulary: Vocabulary, seed: int, count: int = 48) -> dict[str, float]:
    """Greedy accuracy per task on seeds that training never uses."""
    scores = {}
    model.eval()
    with torch.inference_mode():
        for task, kind, size in VALIDATION:
            batch = make_batch(random.Random(f"validation {task} {seed}"), vocabulary, kind, size, count, 1.0, 1, task)
            scores[task] = sum(right_answers(answer_logits(model, batch, encode(model, batch)), batch)) / count
    model.train()
    return scores


def run(args: argparse.Namespace) -> None:
    """Train, with a line of figures every `--log` steps and a checkpoint at each validation."""
    torch.set_num_threads(args.threads)
    upstream.Qwen3VLVisionAttention.forward = batched_vision_attention
    args.work.mkdir(parents=True, exist_ok=True)
    layout = args.work / "layout"
    if not (layout / "tokenizer.json").exists():
        write_layout(layout)
    vocabulary = Vocabulary(layout)
    model = new_model(layout, args.seed)
    heads = AuxiliaryHeads(vocabulary, model.config.text_config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    first = resume(args.work / "state.pt", model, heads, optimizer)
    loader = DataLoader(Steps(args, layout, first), batch_size=None, num_workers=1, prefetch_factor=4)
    figures: dict[str, list[float]] = defaultdict(list)
    started = time.time()
    for step, batch in enumerate(loader, start=first):
        done = max(step / args.steps, (time.time() - started) / (60 * args.minutes) if args.minutes else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, args)
        train_step(model, heads, optimizer, parameters, batch, step, args, figures)
        if (step + 1) % args.log == 0:
            report(figures, step + 1, args, started, first)
        last = step + 1 == args.steps or done >= 1.0
        if (step + 1) % args.validate == 0 or last:
            if step >= args.warm:
                scores = validate(model, vocabulary, seed=0)
                print("  validation " + " ".join(f"{k}={v:.2f}" for k, v in scores.items()), flush=True)
            save(args.work / "state.pt", model, heads, optimizer, step + 1)
            release(model, layout, args.out)
        if last:
            break


def train_step(
    model: Any,
    heads: Any,
    optimizer: Any,
    parameters: list[Any],
    batch: Batch,
    step: int,
    args: argparse.Namespace,
    figures: dict[str, list[float]],
) -> None:
    """One step: the auxiliary loss always, the language loss once the encoder is warm."""
    joint = step >= args.warm
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        encoded = encode(model, batch)
        auxiliary, accuracies = heads(encoded, model.model.language_model.embed_tokens.weight, batch)
        weight = 1.0 if not joint else 0.3
        loss = auxiliary * weight
        if joint:
            language = answer_loss(answer_logits(model, batch, encoded), batch)
            figures["language"].append(language.item())
            loss = loss + language
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    figures["auxiliary"].append(auxiliary.item())
    for name, value in zip(("colour", "shape", "digit", "centre"), accuracies, strict=True):
        if not math.isnan(value):
            figures[name].append(value)
    figures["samples"].append(batch.input_ids.shape[0])


def report(figures: dict[str, list[float]], step: int, args: argparse.Namespace, started: float, first: int) -> None:
    seconds = time.time() - started
    means = " ".join(f"{k}={sum(v) / len(v):.3f}" for k, v in figures.items() if k != "samples")
    left = seconds / (step - first) * (args.steps - step)
    print(
        f"step {step}/{args.steps} {(step - first) / seconds:.2f} steps/s left {left / 60:.0f} min {means}", flush=True
    )
    figures.clear()


def resume(path: Path, model: Any, heads: Any, optimizer: Any) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    missing = heads.load_state_dict(state["heads"], strict=False).missing_keys
    if not missing:  # a head that is new starts with a new optimizer
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(path: Path, model: Any, heads: Any, optimizer: Any, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def release(model: Any, layout: Path, out: Path) -> None:
    """Write the checkpoint in fp16 beside its layout, file by file, weights last."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.to(torch.float16).contiguous().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"
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
    parser.add_argument("--minutes", type=float, default=0.0, help="End after this time; 0 for no limit.")
    parser.add_argument("--warm", type=int, default=800)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=int, default=50)
    parser.add_argument("--validate", type=int, default=400)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
