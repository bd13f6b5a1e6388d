"""A gate file makes parity a release check: it exits with 1, says which limits were missed, and is read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.distance import Distance
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.packing import WIRE_DTYPES
from qwen3vl_edge.tools.parity.encoder import Bound, EncoderRow
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.gate import default_gate, judge
from qwen3vl_edge.tools.parity.gate_file import read_gate
from qwen3vl_edge.tools.parity.limits import UNKNOWN, WIRE_LIMITS, limits_of
from qwen3vl_edge.tools.parity.pictures import draw_picture
from tests.support.run_cli import run_here

OUTPUTS = ("embeds", "deepstack.0")
ROW = EncoderRow("1x8x8", "fixed", "embeds", 1, Distance(0.9995, 0.01, 1e-3), Bound(0.9999), 2e-3)
PROMPT = PromptResult("a", True, (1, 2), (1, 2), "x", "x", None, (1e-9, 1e-5), 10)


def gate_of(tmp_path: Path, text: str, precision: str = "fp16"):  # type: ignore[no-untyped-def]
    (tmp_path / "gate.toml").write_text(text)
    return read_gate(tmp_path / "gate.toml", precision, "fp16", OUTPUTS)


def test_defaults_are_one_table() -> None:
    assert default_gate("fp32", "fp32").answers.min_agreement == 1.0
    assert default_gate("fp32", "fp16").answers.min_agreement == 0.99
    assert default_gate("fp32", "fp32").answers.max_kl == pytest.approx(PRECISIONS["fp32"].max_kl)
    both = default_gate("fp16", "fp16").answers.max_kl
    assert both == pytest.approx((1e-4**0.5 + 1e-5**0.5) ** 2)  # errors add up, and KL is their square
    assert set(WIRE_LIMITS) == set(WIRE_DTYPES)
    assert default_gate("int8", "fp16").encoder.min_cosine == limits_of("int8-fp16").min_cosine == 0.999
    assert (limits_of("fp8").min_cosine, limits_of("fp8").min_agreement) == (0.998, 0.98)
    assert limits_of("int4") == UNKNOWN
    failed = [row for row in judge(default_gate("fp16", "fp16"), [ROW], [PROMPT], None) if not row.passed]
    assert [str(row) for row in failed] == ["encoder fp16 1x8x8 fixed embeds: cosine 0.9995, required at least 0.9999"]


def test_each_table_overrides_the_one_before(tmp_path: Path) -> None:
    text = """
    [encoder]
    min_cosine = 0.999
    max_token_error = 0.5
    [encoder.output."deepstack.0"]
    min_cosine = 0.99
    [layers]
    max_relative_l2 = 0.02
    [answers]
    min_agreement = 0.95
    max_kl = 0.1
    [precision.fp16.encoder]
    max_token_error = 1e-3
    [precision.fp32.encoder]
    min_cosine = 1.0
    """
    gate = gate_of(tmp_path, text)
    assert gate.encoder.min_cosine == 0.999
    assert gate.of_output("deepstack.0").min_cosine == 0.99
    assert gate.of_output("deepstack.0").max_token_error == gate.of_output("embeds").max_token_error == 1e-3
    assert (gate.max_layer_l2, gate.answers.min_agreement, gate.answers.max_kl) == (0.02, 0.95, 0.1)
    assert gate_of(tmp_path, text, "fp32").encoder.min_cosine == 1.0
    rows = judge(gate, [ROW], [PROMPT], None)
    assert {row.figure: row.passed for row in rows} == {
        "cosine": True, "token error": False, "relative L2": False, "agreement": True, "largest KL": True,
    }  # fmt: skip
    assert "not measured" in str(next(row for row in rows if row.what == "layers fp16"))


def test_what_is_not_a_number_fails(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, "[encoder]\nmax_abs = 10.0\nmax_relative_l2 = 10.0\n")
    nan = float("nan")
    row = EncoderRow("1x8x8", "fixed", "embeds", 1, Distance(nan, nan, nan), Bound(0.0), nan)
    assert not any(item.passed for item in judge(gate, [row], [], None))


def test_answers_that_a_gate_asks_for_have_to_be_measured(tmp_path: Path) -> None:
    assert judge(default_gate("fp16", "fp16"), [], [], None) == []
    asked = judge(gate_of(tmp_path, "[answers]\nmin_agreement = 0.5\nmin_prompts = 2\n"), [], [], None)
    assert [(row.figure, row.passed) for row in asked] == [
        ("agreement", False),
        ("largest KL", False),
        ("prompts at native grids", False),
    ]
    resized = PromptResult("a", False, (1,), (2,), "x", "y", 0, (), 10)  # says nothing of agreement
    few = judge(gate_of(tmp_path, "[answers]\nmin_prompts = 2\n"), [], [PROMPT, resized], None)
    assert {row.figure: row.passed for row in few} == {
        "agreement": True, "largest KL": True, "prompts at native grids": False,
    }  # fmt: skip


BAD = [
    ("[encoder]\nmin_cosin = 0.9\n", "encoder has an unknown key"),
    ("[encoder]\nmin_cosine = 1.5\n", "a number from 0 to 1"),
    ("[encoder]\nmin_cosine = true\n", "encoder.min_cosine is not a limit"),
    ("[encoder]\nmax_abs = -1\n", "a number of at least 0"),
    ("[encoder]\nmax_abs = nan\n", "encoder.max_abs is not a limit"),
    ("[encoder.output.pooled]\nmin_cosine = 0.9\n", "expected embeds or deepstack.0, got pooled"),
    ("[layers]\n", "layers is empty"),
    ("[answers]\nmin_agreement = '99 %'\n", "answers.min_agreement is not a limit"),
    ("[speed]\nmax_seconds = 1\n", "unknown key"),
    ("precision = 3\n", "precision is not a table"),
    ("[precision.int8.encoder]\nmin_cosin = 0.9\n", "precision.int8: encoder has an unknown key"),
    ("encoder = 3\n", "encoder is not a table"),
    ("[encoder\n", "is not TOML"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words for _, words in BAD])
def test_a_slip_in_the_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        gate_of(tmp_path, text)


def test_a_release_check(small_bundle: Path, reference: Path, tmp_path: Path) -> None:
    """Through the command line, with answers: kept, then missed in JSON and on the page."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw_picture(0).save(pictures / "one.png")
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"messages": [{"role": "user", "content": word}]} for word in ("Hello?", "How many?")]
    prompts.write_text("".join(json.dumps(item) + "\n" for item in asked))
    gate = tmp_path / "gate.toml"
    arguments = (
        "parity", "--bundle", small_bundle, "--model", reference, "--images", pictures, "--prompts", prompts,
        "--precision", "fp16", "--max-new-tokens", 2, "--gate", gate,
    )  # fmt: skip
    gate.write_text("[encoder]\nmin_cosine = 0.999\n[layers]\nmax_relative_l2 = 0.02\n[answers]\nmin_agreement = 0.9\n")
    kept = run_here(*arguments)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "parity holds" in kept.stdout
    gate.write_text("[precision.fp16.layers]\nmax_relative_l2 = 1e-5\n[precision.fp16.encoder]\nmax_abs = 1e-6\n")
    missed = run_here(*arguments, "--json", "--report", tmp_path / "page.html")
    assert missed.returncode == 1
    report = json.loads(missed.stdout)
    assert not report["passed"]
    failed = [row for row in report["gate"] if not row["passed"]]
    assert len(failed) == missed.stderr.count("failed ") > 8
    page = (tmp_path / "page.html").read_text()
    assert "Parity is broken" in page
    shown = page.count('<span class="fail">failed</span>')
    assert len(failed) < shown <= 2 * len(failed)  # in the open, and among all limits


def test_a_device_is_checked_by_its_dump(small_bundle: Path, reference: Path, tmp_path: Path) -> None:
    """The failed rows on a terminal; limits on answers fail too, since a dump has none."""
    dump, gate = tmp_path / "dump.npz", tmp_path / "gate.toml"
    assert run_here("dump", "--bundle", small_bundle, "--precision", "fp16", "--out", dump).returncode == 0
    arguments = ("parity", "--dump", dump, "--bundle", small_bundle, "--model", reference, "--gate", gate)
    gate.write_text("[encoder]\nmax_relative_l2 = 1e-2\n")
    assert run_here(*arguments).returncode == 0
    gate.write_text("[encoder]\nmax_relative_l2 = 1e-6\n[answers]\nmin_agreement = 0.9\n")
    missed = run_here(*arguments)
    assert missed.returncode == 1
    assert "failed encoder fp16 1x8x8 fixed embeds: relative L2 0.000" in missed.stdout
    assert "failed answers: agreement not measured, required at least 0.9" in missed.stdout
    assert "parity is broken" in missed.stdout
    gate.unlink()
    nowhere = run_here(*arguments)
    assert nowhere.returncode == 2
    assert "gate.toml cannot be read" in nowhere.stderr
