"""The page of a parity run: what is on it, that it needs nothing but itself, and that a browser lays it out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle, sha256_of
from qwen3vl_edge.contract.bundle.patch_values import patch_values
from qwen3vl_edge.edge_runtime.edge import Edge, open_edge
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.page.heat_map import heat_map
from qwen3vl_edge.tools.parity.page.plots import answer_figure
from qwen3vl_edge.tools.parity.pictures import draw_picture
from qwen3vl_edge.tools.parity.pixels import to_rgb
from qwen3vl_edge.tools.parity.samples import edge_cases
from tests.support.encoders.faulty_bundle import with_weight_changed
from tests.support.run_cli import run_here

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NAME = 'a <b>&"picture.png'
SECTIONS = ("gate", "encoder", "layers", "pictures", "answers", "distribution", "facts")
# Runs in the browser after the page is laid out, and writes what it finds where --dump-dom shows it.
PROBE = """
<script>
window.problems = [];
addEventListener("error", event => window.problems.push(String(event.message || event.target.src)), true);
addEventListener("load", () => {
  const size = item => { const box = item.getBoundingClientRect(); return [box.width, box.height]; };
  const loaded = [...document.images].map(image => image.naturalWidth);
  document.body.dataset.found = JSON.stringify({
    problems: window.problems, svg: [...document.querySelectorAll("figure svg")].map(size),
    images: [...document.images].map(size), loaded, page: document.documentElement.scrollWidth, window: innerWidth,
    outside: [...document.querySelectorAll("section, .card, figure")].filter(
      item => item.getBoundingClientRect().right > innerWidth).length,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def run(
    small_bundle: Path, reference: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path]:  # type: ignore[type-arg]
    """JSON and page of fp16 beside fp32."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "pictures").mkdir()
    for seed, name in enumerate((NAME, "other.png")):
        draw_picture(seed).save(folder / "pictures" / name)
    shutil.copy(samples / "colour.png", folder)
    picture = {"type": "image", "image": "colour.png"}
    asked = [[{"role": "user", "content": [picture, {"type": "text", "text": word}]}] for word in ("What?", "Where?")]
    (folder / "questions.jsonl").write_text("".join(json.dumps({"messages": item}) + "\n" for item in asked))
    done = run_here(
        "parity", "--bundle", small_bundle, "--model", reference, "--images", folder / "pictures",
        "--prompts", folder / "questions.jsonl", "--precision", "fp16", "--against-precision", "fp32",
        "--max-new-tokens", 4, "--report", folder / "page.html", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder / "page.html"


def test_both_sides_are_measured(run: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    report, _ = run

    def by_place(rows: list) -> dict:  # type: ignore[type-arg]
        return {(row["bucket"], row["graph"], row["output"]): row for row in rows}

    candidate, other = by_place(report["encoder"]), by_place(report["against"]["encoder"])
    between = by_place(report["against"]["between"])
    assert report["against"]["label"] == "onnxruntime fp32"
    assert set(candidate) == set(other) == set(between)
    assert len(candidate) == 12  # two graphs of the image bucket and one of the clip bucket, four outputs
    for key, row in candidate.items():
        assert row["distance"]["relative_l2"] > 50 * other[key]["distance"]["relative_l2"]  # fp16 against fp32
        assert row["distance"]["relative_l2"] <= row["worst_token"] < 1e-2
        assert between[key]["distance"]["relative_l2"] == pytest.approx(row["distance"]["relative_l2"], rel=0.1)
    assert len(report["against"]["prompts"]) == len(report["prompts"]) == 2


def test_the_page_says_all_and_needs_nothing(run: tuple[dict, Path], small_bundle: Path) -> None:  # type: ignore[type-arg]
    page = run[1].read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', page) == list(SECTIONS)
    assert "<script" not in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(?!data:|#)[\w/]""", re.sub(r"url\(#", "", page))
    assert NAME not in page
    assert "a &lt;b&gt;&amp;&#34;picture.png" in page
    bundle = open_bundle(small_bundle)
    for fact in (bundle.manifest.model.model_hash, sha256_of(small_bundle / "manifest.json"), "transformers 5."):
        assert fact in page
    for file in bundle.manifest.files:
        assert file.sha256 in page
    for layer in ("pos_embed.flat", "blocks.5.mlp.residual", "deepstack_merger_list.2.linear_fc2", "merger.linear_fc2"):
        assert page.count(f"<code>{layer}</code>") >= 3  # once per graph
    assert "<h3>Transformers alone</h3>" in page
    assert re.search(r"the same input on \d of 2 prompts", page)
    assert "<h3>On the wire</h3>" in page
    assert "set fp32: --precision fp16 was asked for" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; any machine with one runs this (apt install chromium)")
@pytest.mark.parametrize("width", [1280, 800])
def test_a_browser_lays_it_out(run: tuple[dict, Path], tmp_path: Path, width: int) -> None:  # type: ignore[type-arg]
    probed = tmp_path / "probed.html"
    probed.write_text(run[1].read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}"), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000", "--dump-dom", probed.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    found = json.loads(match.group(1).replace("&quot;", '"'))
    assert found["problems"] == []
    assert found["window"] == width
    assert found["page"] <= width  # nothing makes the page itself scroll sideways
    assert found["outside"] == 0
    assert len(found["svg"]) == 5
    assert all(wide > 0.6 * width and high > 100 for wide, high in found["svg"])
    assert len(found["images"]) == 2 * 6  # two pictures at three graphs, each with its heat map
    assert all(wide > 80 and high > 50 for wide, high in found["images"])
    assert all(natural > 100 for natural in found["loaded"])


@pytest.fixture(scope="module")
def edge(small_bundle: Path) -> Iterator[Edge]:
    with open_edge(small_bundle) as opened:
        yield opened


def test_pixels_come_back_to_the_bit(edge: Edge) -> None:
    """What the heat maps show and dumps keep is what the HF processor was given."""
    manifest = edge.bundle.manifest
    seen = []
    for case in edge_cases(edge, {"drawn": draw_picture(3)}):
        rgb = to_rgb(case.input.pixel_values, case.grid, manifest.vision, manifest.preprocessing)
        assert rgb.shape[1:3] == manifest.vision.geometry.pixels(case.grid)
        back = patch_values(rgb, case.grid, manifest.vision, manifest.preprocessing)
        assert np.array_equal(back, case.input.pixel_values)
        seen.append(str(case.grid))
    assert seen == ["1x8x8", "1x8x8", "4x6x8"]


def test_the_heat_map_is_hot_where_the_error_is(edge: Edge) -> None:
    manifest = edge.bundle.manifest
    case = next(item for item in edge_cases(edge, {"drawn": draw_picture(3)}) if item.grid == Grid(4, 6, 8))
    errors = np.full(case.grid.tokens(2), 1e-3)
    errors[2 * 12 + 1 * 4 + 3] = 0.5  # third temporal patch, second row, fourth column
    found = heat_map(case, errors, manifest.vision, manifest.preprocessing)
    assert (found.frame, found.row, found.column, found.worst) == (2, 1, 3, 0.5)
    nan = np.where(errors == 0.5, np.nan, errors)
    assert heat_map(case, nan, manifest.vision, manifest.preprocessing).row == 1


def test_a_page_of_a_device_that_returns_nan(small_bundle: Path, reference: Path, tmp_path: Path) -> None:
    """An overflow is what such a page is opened for: it is drawn, it says so, and no limit holds for NaN."""
    nan = float("nan")
    broken = with_weight_changed(small_bundle, tmp_path / "broken", "blocks.4.mlp.linear_fc2.bias", (3,), nan)
    dump, page = tmp_path / "dump.npz", tmp_path / "page.html"
    made = run_here("dump", "--bundle", broken, "--precision", "fp32", "--layers", "--out", dump)
    assert made.returncode == 0, made.stderr
    done = run_here("parity", "--dump", dump, "--bundle", broken, "--model", reference, "--report", page)
    assert done.returncode == 1, done.stderr
    assert "cosine nan, required at least 0.99999" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "Parity is broken" in text
    assert '<div class="card"><b>blocks.4</b>' in text  # the first module to drift
    assert 'worst token\n<span class="figure">inf</span>' in text
    bisected = run_here("parity", "--bisect", "--dump", dump, "--bundle", broken, "--model", reference)
    assert (bisected.returncode, "blocks.4.mlp.residual" in bisected.stdout.splitlines()[-1]) == (1, True)


def test_where_answers_part_is_drawn() -> None:
    alike = PromptResult("a", True, (1, 2), (1, 2), "x", "x", None, (1e-9, 1e-9), 10)
    parted = PromptResult("b", True, (1, 2), (1, 3), "x", "y", 1, (1e-9, 0.5), 10)
    resized = PromptResult("c", False, (1, 2), (1, 3), "x", "y", 0, (9.0, 9.0), 10)
    assert "no answer differs" in answer_figure([("one", [alike, resized])])
    drawn = answer_figure([("one", [alike, parted]), ("other", [alike])])
    assert "no answer differs" not in drawn
    assert {"one, largest", "other, median"} <= set(re.findall(r">([^<>]+)</text>", drawn))
