"""Parity is the product: the split against the unsplit model on held-out prompts of every structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.train_reference.heldout import PROMPT_KINDS, mixed_prompts
from qwen3vl_edge.tools.parity.end_to_end import (
    PromptResult,
    Split,
    Unsplit,
    compare_prompts,
    first_divergence,
    kl_divergence,
    open_both,
)
from qwen3vl_edge.tools.parity.gate import default_gate, judge
from tests.support.photographs import photographs, real_clips

PROMPTS, ALL_PROMPTS = 42, 210
TOKENS = 12


@pytest.fixture(scope="module")
def both(edge: Edge, reference: Path) -> tuple[Split, Unsplit]:
    split, unsplit = open_both(edge, reference)
    unsplit.model = AnswersOnce(unsplit.model)
    return split, unsplit


class AnswersOnce:
    """The unsplit model; what it has computed for the same input to the bit it does not compute again."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        return self._once(self._model, inputs)

    def generate(self, **inputs: Any) -> Any:
        return self._once(self._model.generate, inputs)

    def _once(self, compute: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        key = (compute, *((name, _content(value)) for name, value in sorted(inputs.items())))
        if key not in self._kept:
            self._kept[key] = compute(**inputs)
        return self._kept[key]


def _content(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.numpy().tobytes())
    return value.to_json_string() if isinstance(value, GenerationConfig) else repr(value)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[str, list[dict]]]:  # type: ignore[type-arg]
    return [(item.id, item.messages) for item in mixed_prompts(PROMPTS)]


@pytest.fixture(scope="module")
def fp32_results(both: tuple[Split, Unsplit], prompts: list) -> list[PromptResult]:  # type: ignore[type-arg]
    return compare_prompts(prompts, *both, TOKENS)


def check_same(results: list[PromptResult]) -> None:
    kinds = Counter(item.name.rsplit("-", 1)[0] for item in results)
    assert set(kinds) == {kind.replace(" ", "-") for kind in PROMPT_KINDS}
    assert all(item.exact for item in results)
    assert [item.name for item in results if not item.agrees] == []
    assert max(max(item.kl) for item in results) < 1e-6


def test_fp32_split_is_the_unsplit_model_on_every_kind_of_prompt(fp32_results: list[PromptResult]) -> None:
    assert len(fp32_results) == PROMPTS
    check_same(fp32_results)


def test_sound_answers_are_far_within_the_default_limits(fp32_results: list[PromptResult]) -> None:
    gate = default_gate("fp32", "fp32")
    assert all(row.passed for row in judge(gate, [], fp32_results, None))
    assert gate.answers.max_kl is not None
    assert max(max(item.kl) for item in fp32_results) < gate.answers.max_kl / 1000


def test_another_mean_of_clips_is_beyond_the_default_limits(
    bundle: Path,
    both: tuple[Split, Unsplit],
    prompts: list,  # type: ignore[type-arg]
) -> None:
    """Qwen2-VL's mean in place of Qwen3-VL's: every answer may be the same, the logits are not."""
    asked = [item for item in prompts if item[0].startswith("video")][:6]
    for mean, sound in (([0.5, 0.5, 0.5], True), ([0.48145466, 0.4578275, 0.40821073], False)):
        options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), preprocess="reference")
        with open_edge(bundle, options) as edge:
            edge.processor.hf.video_processor.image_mean = mean
            results = compare_prompts(asked, both[0].with_edge(edge), both[1], 4)
        rows = [row for row in judge(default_gate("fp32", "fp16"), [], results, None) if row.figure == "largest KL"]
        assert [row.passed for row in rows] == [sound], rows


def test_fp32_split_is_the_unsplit_model_on_photographs(both: tuple[Split, Unsplit]) -> None:
    def asked(*parts: dict) -> list[dict]:  # type: ignore[type-arg]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is shown?"}]}]

    size = {"min_pixels": 4096, "max_pixels": 110_000}  # too large for any bucket: the size is their own
    pictures = [{"type": "image", "image": str(path), **size} for path in photographs()[::5]]
    clips = [{"type": "video", "video": str(path), "nframes": 4, **size} for path in real_clips()]
    prompts = [(f"photograph-{number}", asked(picture)) for number, picture in enumerate(pictures)]
    prompts += [("pair", asked(*pictures[:2])), ("clip", asked(clips[0])), ("both", asked(pictures[2], clips[1]))]
    results = compare_prompts(prompts, *both, TOKENS)
    assert all(item.exact for item in results)
    assert [item.name for item in results if not item.agrees] == []
    assert max(max(item.kl) for item in results) < 1e-6


@pytest.mark.slow
def test_fp32_split_is_the_unsplit_model_on_every_prompt(both: tuple[Split, Unsplit]) -> None:
    results = compare_prompts([(item.id, item.messages) for item in mixed_prompts(ALL_PROMPTS)], *both, TOKENS)
    assert len(results) == ALL_PROMPTS
    check_same(results)


def test_fp16_embeddings_give_the_same_answers(
    bundle: Path,
    reference: Path,
    both: tuple[Split, Unsplit],
    prompts: list,
    fp32_results: list[PromptResult],  # type: ignore[type-arg]
) -> None:
    options = EdgeOptions(wire_dtype="fp16", backend_options=BackendOptions(precision="fp32"))
    same = sent = 0
    with open_edge(bundle, options) as edge:
        split = both[0].with_edge(edge)
        for (_, messages), reference_result in zip(prompts, fp32_results, strict=True):
            inputs, _, nbytes = split.inputs(messages, Sampling(max_new_tokens=TOKENS))
            answer = split.greedy(inputs, TOKENS)
            assert split.agrees(inputs, answer)  # in one pass along it
            assert not split.agrees(inputs, (*answer[:-1], answer[-1] ^ 1))
            same += answer == reference_result.unsplit_ids
            sent += nbytes
    assert same >= 0.99 * len(prompts)
    assert sent < 0.6 * sum(item.sent_bytes for item in fp32_results)


@pytest.mark.parametrize("fault", ["zeroed DeepStack", "levels swapped", "shifted", "height and width swapped"])
def test_the_comparison_notices_faults(both: tuple[Split, Unsplit], prompts: list, fault: str) -> None:  # type: ignore[type-arg]
    """The same run over a split that does one thing wrong: its logits part by far, with DeepStack its answers too."""
    split, unsplit = both
    faulty = FaultySplit(split, fault)
    chosen = [item for item in prompts if not item[0].startswith("text")][:30]
    results = compare_prompts(chosen, faulty, unsplit, TOKENS)
    assert max(max(item.kl) for item in results) > 1e-3  # a thousand times the limit above
    if fault in ("zeroed DeepStack", "levels swapped"):  # places are in the embeddings themselves: see the card
        assert sum(not item.agrees for item in results) >= 3


class FaultySplit(Split):
    """A split whose server makes one mistake."""

    def __init__(self, split: Split, fault: str) -> None:
        super().__init__(split.edge, split.loaded)
        self.fault = fault

    def inputs(self, messages, sampling):  # type: ignore[no-untyped-def]
        inputs, exact, sent = super().inputs(messages, sampling)
        for kind, output in inputs.get("mm_encoder_outputs", {}).items():
            levels = output.deepstack_features
            if self.fault == "zeroed DeepStack":
                output.deepstack_features = [[item * 0 for item in level] for level in levels]
            elif self.fault == "levels swapped":
                output.deepstack_features = [levels[1], levels[2], levels[0]]
            elif self.fault == "shifted":
                output.pooler_output = tuple(item.roll(1, 0) for item in output.pooler_output)
                output.deepstack_features = [[item.roll(1, 0) for item in level] for level in levels]
            else:
                inputs[f"{kind}_grid_thw"] = inputs[f"{kind}_grid_thw"][:, [0, 2, 1]]
        return inputs, exact, sent


def test_first_divergence() -> None:
    assert first_divergence((1, 2, 3), (1, 2, 3)) is None
    assert first_divergence((1, 2, 3), (1, 5, 3)) == 1
    assert first_divergence((1, 2), (1, 2, 3)) == 2
    assert first_divergence((), (4,)) == 0


def test_metrics() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert distance(a, a).cosine == pytest.approx(1.0)
    assert distance(a * 2, a).cosine == pytest.approx(1.0)
    assert distance(a * 2, a).relative_l2 == pytest.approx(1.0)
    assert distance(a + 0.5, a).max_abs == pytest.approx(0.5)
    assert np.isnan(distance(a * np.nan, a).cosine)
    logits = np.array([[0.0, 1.0, 2.0]])
    other = np.array([[2.0, 1.0, 0.0]])
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(other), -1), torch.log_softmax(torch.tensor(logits), -1), log_target=True,
        reduction="sum",
    )  # fmt: skip
    assert kl_divergence(logits, other)[0] == pytest.approx(expected.item())
    assert kl_divergence(logits, logits + 5)[0] == pytest.approx(0.0, abs=1e-12)
