"""Which frames are sampled, and their size, are qwen-vl-utils' for every clip and option."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from qwen_vl_utils import vision_process as qwen

from qwen3vl_edge.edge_runtime.inputs.clip_sampling import frame_count, frame_range, spread


def or_refused(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, AssertionError):
        return "refused"


def drawn(rng: random.Random, seconds: float) -> dict[str, Any]:
    """Options of a message's part."""
    makers: dict[str, Callable[[], float]] = {
        "video_start": lambda: rng.uniform(0, seconds * 1.1),
        "video_end": lambda: rng.uniform(0, seconds * 1.1),
        "min_frames": lambda: rng.randint(1, 20),
        "max_frames": lambda: rng.randint(1, 90),
    }
    element: dict[str, Any] = {name: make() for name, make in makers.items() if rng.random() < 0.25}
    if (kind := rng.random()) < 0.3:
        element["fps"] = rng.choice([1, 2.0, rng.uniform(0.1, 40)])
    elif kind < 0.5:
        element["nframes"] = rng.choice([rng.randint(1, 400), rng.uniform(1, 30)])
    elif kind < 0.52:
        element |= {"fps": 1, "nframes": 4}
    return element


def upstream(element: dict[str, Any], total: int, fps: float) -> list[int]:
    start, end, count = qwen.calculate_video_frame_range(element, total, fps)
    number = qwen.smart_nframes(element, count, fps)
    indices: list[int] = torch.linspace(start, end, number).round().long().tolist()
    return indices


def ours(element: dict[str, Any], total: int, fps: float) -> list[int]:
    start, end = frame_range(element, total, fps)
    return spread(start, end, frame_count(element, end - start + 1, fps))


def test_frames_of_ten_thousand_clips() -> None:
    rng, refused = random.Random(1), 0
    for _ in range(10_000):
        total, fps = rng.randint(2, 3000), rng.choice([24000 / 1001, 30, 25, rng.uniform(0.5, 120)])
        element = drawn(rng, total / fps)

        expected = or_refused(partial(upstream, element, total, fps))
        assert or_refused(partial(ours, element, total, fps)) == expected, (element, total, fps)
        refused += expected == "refused"
    assert 100 < refused < 5000


def test_spread_is_torchs_to_the_last_bit() -> None:
    """In float32 some places lie at half a frame, or just not."""
    rng = random.Random(2)
    cases = [(start, start + total - 1, n) for start in (0, 7) for total in range(2, 90) for n in range(2, total + 1)]
    cases += [(start, start + rng.randint(1, 20_000), 2 * rng.randint(1, 384)) for start in range(5000)]
    for start, end, number in cases:
        assert spread(start, end, number) == torch.linspace(start, end, number).round().long().tolist()
