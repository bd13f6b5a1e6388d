"""The daemon's page in a real browser: asked, answered, drawn; and nothing on it comes from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from tests.support.chromium import CHROMIUM, Tab, running_chromium
from tests.support.http_api.chat import data_uri, post_chat, user

WITH_BROWSER = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium; any machine with one runs this (apt install chromium)"
)
# The canvas' size, and how many colours are on it. A copy is read: Chromium warns of canvases that are read often.
INK = """(() => {
  const canvas = document.querySelector("#seen canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let at = 0; at < data.length; at += 4) seen.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
  return [canvas.width, canvas.height, seen.size];
})()"""
QUESTION = "What colour is the cross?"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, bundle: Path, server_url: str) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("page")
    with running_daemon(folder, bundle, server_url, f'cache = "{folder / "cache"}"\nmax_media_mib = 4\n') as running:
        yield running


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with running_chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, daemon: DaemonProcess) -> Tab:
    tab.events.clear()
    tab.open(daemon.url + "/", 1400)
    tab.wait("document.querySelector('#status .good') !== null")
    return tab


def attach(page: Tab, *files: Path) -> None:
    page.choose("#files", *files)
    page.wait(f"document.querySelectorAll('#tray li').length === {len(files)}")


def ask(page: Tab, text: str) -> str:
    """Typed and sent with Enter; the answer, once it is complete."""
    before = page.run("document.querySelectorAll('button.behind').length")
    page.run("document.querySelector('#question').focus()")
    page.type(text)
    page.press("Enter", 13)
    page.wait(f"document.querySelectorAll('button.behind').length === {before + 1}")
    page.wait("document.querySelector('#times .stack') !== null")
    answer: str = page.run("[...document.querySelectorAll('.words')].at(-1).textContent")
    return answer


def text_of(page: Tab, selector: str) -> str:
    found: str = page.run(f"document.querySelector({selector!r}).innerText")
    return found


def by_api(daemon: DaemonProcess, path: Path, kind: str, text: str) -> dict[str, Any]:
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": data_uri(path)}}
    answer: dict[str, Any] = post_chat(daemon.url, {"messages": [user(part, text)]}).json()
    return answer


@WITH_BROWSER
def test_a_picture_is_asked_about(page: Tab, daemon: DaemonProcess, samples: Path) -> None:
    attach(page, samples / "colour.png")
    answer = ask(page, QUESTION)
    whole = by_api(daemon, samples / "colour.png", "image", QUESTION)
    assert answer == whole["choices"][0]["message"]["content"]
    media = whole["qwen3vl_edge"]["media"][0]
    page.wait("document.querySelector('#seen canvas') !== null")
    width, height, colours = page.run(INK)
    rows, columns = (int(side) for side in media["grid"].split("x")[1:])
    assert width * rows == height * columns
    assert colours > 3  # the picture and the lines, not a blank
    page.run("document.querySelector('#show-grid').click()")
    assert page.run(INK)[2] != colours
    assert media["grid"] in text_of(page, "#seen")
    assert f"= {rows * columns // 4}, each 32 × 32 px" in text_of(page, "#seen")
    for stage in ("Preprocess", "Encode", "First token", "Further tokens"):
        assert stage in text_of(page, "#times")
    assert page.run("[...document.querySelectorAll('.stack span')].every(one => one.offsetWidth > 0)")
    assert "times the size of the file" in text_of(page, "#bytes")
    assert f"{os.path.getsize(samples / 'colour.png')} B" in text_of(page, "#bytes")
    page.wait("document.querySelectorAll('#rows tbody tr').length >= 2")
    assert media["grid"] in text_of(page, "#rows tbody tr")
    assert page.complaints() == []
    assert {url for url in page.requested() if not url.startswith((f"{daemon.url}/", "blob:", "data:"))} == set()


@WITH_BROWSER
def test_what_is_drawn_is_what_the_device_encodes(page: Tab, tmp_path: Path) -> None:
    """A camera's EXIF tag turns a picture in browsers and on the device."""
    picture = Image.new("RGB", (192, 96), "red")
    picture.paste("blue", (96, 0, 192, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.linear_gradient("L").resize((126, 120)).save(tmp_path / "fitted.png")
    attach(page, tmp_path / "turned.jpg", tmp_path / "fitted.png")
    ask(page, "What is in the picture?")
    page.wait("document.querySelectorAll('#seen canvas').length === 2")
    page.run("document.querySelector('#show-grid').click()")
    assert "96 × 192 px" in text_of(page, "#seen")
    pixel = "[...document.querySelector('#seen canvas').getContext('2d').getImageData(300, {y}, 1, 1).data]"
    top, bottom = page.run(pixel.format(y=100)), page.run(pixel.format(y=860))
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]
    page.run("document.querySelector('#show-grid').click()")
    page.screenshot(Path(os.environ.get("PAGE_SCREENSHOTS", tmp_path)) / "page-fitted.png")


@WITH_BROWSER
def test_a_second_turn_and_a_new_conversation(page: Tab, samples: Path) -> None:
    attach(page, samples / "shape.png")
    ask(page, "What shape is the yellow object?")
    ask(page, "Are you sure?")
    assert "cache" in text_of(page, "#seen")
    assert page.run("document.querySelectorAll('.asked').length") == 2
    page.run("document.querySelector('#new').click()")
    assert page.run("document.querySelectorAll('.asked, #seen canvas').length") == 0
    ask(page, "What can you do?")
    assert "No picture" in text_of(page, "#seen")
    assert page.complaints() == []


@WITH_BROWSER
def test_a_clip(page: Tab, daemon: DaemonProcess, samples: Path) -> None:
    attach(page, samples / "motion.mp4")
    answer = ask(page, "Which way does the cross move?")
    whole = by_api(daemon, samples / "motion.mp4", "video", "Which way does the cross move?")
    assert answer == whole["choices"][0]["message"]["content"]
    page.wait("document.querySelector('#seen canvas') !== null")
    assert "steps in time" in text_of(page, "#seen")
    assert page.complaints() == []


@WITH_BROWSER
def test_a_camera_still(page: Tab) -> None:
    page.run("document.querySelector('#camera').click()")
    page.wait("!document.querySelector('.take').disabled")
    page.run("document.querySelector('.take').click()")
    page.wait("document.querySelectorAll('#tray li').length === 1")
    assert "camera-" in text_of(page, "#tray")
    assert ask(page, "What is in the picture?")
    page.wait("document.querySelector('#seen canvas') !== null")
    assert page.run(INK)[2] > 10
    assert page.complaints() == []


@WITH_BROWSER
def test_what_is_no_picture_is_refused_in_words(page: Tab, daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "notes.png").write_text("no picture")
    page.choose("#files", tmp_path / "notes.txt")
    page.wait("!document.querySelector('#notice').hidden")
    assert "notes.txt is text/plain: neither a picture nor a clip" in text_of(page, "#notice")
    attach(page, tmp_path / "notes.png")
    page.run("document.querySelector('#question').focus()")
    page.type("What?")
    page.press("Enter", 13)
    page.wait("document.querySelector('article.error') !== null")
    assert "Notes.png is not a picture" in text_of(page, "article.error")
    assert "field image" in text_of(page, "article.error")
    assert page.run("document.querySelector('#question').value") == "What?"  # to be asked again
    page.wait("document.querySelector('#rows tbody .bad') !== null")
    newest = httpx.get(f"{daemon.url}/v1/requests/recent").json()["data"][0]
    assert (newest["status"], newest["error"], newest["media"]) == (400, "bad_input", [])


@WITH_BROWSER
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_it_fits(page: Tab, samples: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page.size(width, 1000, dark)
    attach(page, samples / "number-wide.png", samples / "shape.png")
    ask(page, "Which number do you see?")
    page.wait("document.querySelectorAll('#seen canvas').length === 2")
    assert page.run("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth)"
    assert page.run(f"{outside}.map(one => one.outerHTML.slice(0, 90))") == []
    page.screenshot(Path(os.environ.get("PAGE_SCREENSHOTS", tmp_path)) / f"page-{width}.png")


@WITH_BROWSER
def test_an_answer_can_be_stopped(page: Tab, daemon: DaemonProcess) -> None:
    page.run("document.querySelector('#temperature').value = '2'")
    page.run("document.querySelector('#max-tokens').value = '100000'")
    page.run("document.querySelector('#question').focus()")
    page.type("Go on")
    page.press("Enter", 13)
    page.wait("!document.querySelector('#stop').hidden")
    page.run("document.querySelector('#stop').click()")
    page.wait("document.querySelector('#stop').hidden && !document.querySelector('.waiting')")
    assert page.run("document.querySelectorAll('.error:not([hidden])').length") == 0


@WITH_BROWSER
def test_a_page_of_another_origin_cannot_ask(tab: Tab, page: Tab, daemon: DaemonProcess) -> None:
    """The same daemon under its other name is another origin to the browser, which is all it goes by."""
    other = daemon.url.replace("127.0.0.1", "localhost")
    tab.open(f"{other}/healthz", 400)
    sent = f"""fetch("{daemon.url}/v1/chat/completions", {{method: "POST", mode: "no-cors", body: "{{}}"}})
      .then(answer => answer.type, error => String(error))"""
    before = httpx.get(f"{daemon.url}/v1/requests/recent").json()
    tab.run(sent)
    assert httpx.get(f"{daemon.url}/v1/requests/recent").json() == before  # it reached no route


def test_assets_are_kept_by_their_content(daemon: DaemonProcess) -> None:
    first = httpx.get(f"{daemon.url}/")
    assert "default-src 'none'" in first.headers["content-security-policy"]
    assert first.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(f"{daemon.url}/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{daemon.url}/page/page.js").headers["content-type"].startswith("text/javascript")
    for path in ("/page/none.js", "/page/..%2fapp.py", "/page/../app.py"):
        assert httpx.get(daemon.url + path).status_code == 404
