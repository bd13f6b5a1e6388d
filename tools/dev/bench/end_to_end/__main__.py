"""Time to the first token at several links: split against an unsplit server against everything on the device.

sudo python -m qwen3vl_edge.tools.dev.bench.end_to_end --out docs/reports/benchmarks/end-to-end.json

Two servers (language model alone; whole model) in one network namespace, a device in another, the link between them
emulated. The model has random weights and few layers, so that the link is seen beside them, and the wire of the 2B
model: 2048 wide (`--width 4096` for the 8B's), three DeepStack levels, 196 visual tokens of a picture of 448x448
(`--picture`). All ways run in turn in each round, each picture is
new, and a time is from the file on disk to the first token. The prediction is `tools/plan`'s, from stage times that
were measured before with no limit on the link; it knows nothing of the measured totals.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.bench.end_to_end.device import LOCAL, PIXELS
from qwen3vl_edge.tools.dev.bench.end_to_end.namespaces import SERVER_ADDRESS, connected, enter
from qwen3vl_edge.tools.dev.bench.line_process import LineProcess
from qwen3vl_edge.tools.dev.bench.measurement import rotated, write_document
from qwen3vl_edge.tools.dev.bench.wire_formats import LEVELS, WIDTH
from qwen3vl_edge.tools.dev.load.model import make_checkpoint
from qwen3vl_edge.tools.parity.pictures import draw_picture
from qwen3vl_edge.tools.plan.paths import SPLIT_TYPES, Pictures, Speeds, predict
from qwen3vl_edge.tools.plan.transfer import LinkSpeed
from qwen3vl_edge.tools.server_process import running_server

REFERENCE = Path("reference/qwen3vl-tiny")
LAYERS, TOWER_LAYERS, TOWER_WIDTH = 3, 6, 512
WAYS = (*(f"split {name}" for name in SPLIT_TYPES), PIXELS, LOCAL)
UNSHAPED = LinkSpeed(100_000, 0.0)
TOKEN_PIXELS = 32  # each way: patches of 16, merged by two


@dataclass(frozen=True)
class Scene:
    """Pictures of `picture` pixels each way, and a language model as wide as `width`."""

    picture: int
    width: int

    @property
    def tokens(self) -> int:
        return (self.picture // TOKEN_PIXELS) ** 2


class Device(LineProcess):
    """The device's process, seen from here: in its own namespace, and waiting for its servers' addresses."""

    def __init__(self) -> None:
        script = 'read -r setup; exec "$0" -m qwen3vl_edge.tools.dev.bench.end_to_end.device "$setup"'
        super().__init__("device", ["unshare", "--net", "bash", "-c", script, sys.executable])

    def question(self, way: str, picture: Path) -> dict[str, Any]:
        """Ask it; `{"seconds", "sent_bytes", "stages"}`."""
        return self.request({"way": way, "picture": str(picture)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", default="10,50,200")
    parser.add_argument("--rtt-ms", default="20,80")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=int, default=448, help="pixels each way, a multiple of 32")
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="of the language model: 2048 as the 2B, 4096 as the 8B"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    enter("qwen3vl_edge.tools.dev.bench.end_to_end")
    links = [
        LinkSpeed(float(mbit), float(rtt) / 1e3)
        for mbit in arguments.mbit.split(",")
        for rtt in arguments.rtt_ms.split(",")
    ]
    with tempfile.TemporaryDirectory(prefix="qwen3vl-end-to-end-") as folder:
        document = measure(Path(folder), links, arguments.rounds, Scene(arguments.picture, arguments.width))
    write_document(arguments.out, document)


def measure(folder: Path, links: list[LinkSpeed], rounds: int, scene: Scene) -> dict[str, Any]:
    """Rows of every link and way, with what was predicted."""
    model = make_checkpoint(folder / "model", REFERENCE, LAYERS, scene.width, TOWER_LAYERS, TOWER_WIDTH)
    export_bundle(str(model), folder / "bundle", image_buckets=f"{scene.picture}x{scene.picture}", dynamic=False)
    options: dict[str, Any] = {"model": str(model), "host": SERVER_ADDRESS, "prefix_cache_mib": 0}
    with (
        closing(Device()) as device,
        connected(device.pid) as emulator,
        running_server(**options) as split_server,
        running_server(**options, allow_pixels=True) as pixel_server,
    ):
        device.send(
            {
                "bundle": str(folder / "bundle"),
                "model": str(model),
                "split_server": split_server.url,
                "pixel_server": pixel_server.url,
            }
        )
        pictures = _pictures(folder, scene.picture)
        emulator.shape(UNSHAPED)
        speeds, sizes = _speeds(device, pictures, rounds, scene)
        rows = []
        for link in links:
            emulator.shape(link)
            rows += _link_rows(device, link, pictures, rounds, speeds, sizes)
    return {
        "rounds": rounds,
        "picture": scene.picture,
        "model": {"layers": LAYERS, "width": scene.width, "tower_layers": TOWER_LAYERS, "tower_width": TOWER_WIDTH},
        "speeds": speeds.__dict__,
        "file_bytes": sizes.file_bytes,
        "rows": rows,
    }


def _pictures(folder: Path, size: int) -> Iterator[Path]:
    """New JPEG files without end: nothing that was kept of an earlier one helps."""
    index = 0
    while True:
        index += 1
        path = folder / f"{index}.jpg"
        draw_picture(index, size, size).convert("RGB").save(path, quality=90)
        yield path


def _speeds(device: Device, pictures: Iterator[Path], rounds: int, scene: Scene) -> tuple[Speeds, Pictures]:
    """Stage times with no shaping: all that the prediction knows."""
    for way in WAYS:
        device.question(way, next(pictures))  # loads, connects
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    encode, first, files = [], [], []
    for _ in range(rounds):
        for way in WAYS:
            picture = next(pictures)
            answer = device.question(way, picture)
            seconds[way].append(answer["seconds"])
            if way == WAYS[0]:
                encode.append(answer["stages"]["preprocess"] + answer["stages"]["encode"])
                first.append(answer["seconds"] - encode[-1])
            files.append(picture.stat().st_size)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    prefill, encoded = statistics.median(first), statistics.median(encode)
    if middle[PIXELS] <= prefill:
        raise InputError(
            "the unsplit server took less time for a picture than the split server for its embeddings",
            expected=f"more than {prefill:.3f} s",
            got=f"{middle[PIXELS]:.3f} s",
            remedy="Take a smaller --width or --picture: carrying the packets, or memory for three models, limits it.",
        )
    packed = statistics.median([middle[f"split {name}"] for name in SPLIT_TYPES[1:]])
    speeds = Speeds(
        device_encode=encoded,
        server_encode=middle[PIXELS] - prefill,
        server_prefill=prefill,
        device_prefill=middle[LOCAL] - encoded,
        pack=max(packed - middle[WAYS[0]], 0.0),
    )
    return speeds, Pictures(scene.tokens, scene.width, LEVELS, int(statistics.median(files)))


def _link_rows(
    device: Device, link: LinkSpeed, pictures: Iterator[Path], rounds: int, speeds: Speeds, sizes: Pictures
) -> list[dict[str, Any]]:
    predicted = {item.name: item for item in predict(sizes, speeds, link)}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, int] = {}
    for number in range(rounds):
        for way in rotated(WAYS, number):
            answer = device.question(way, next(pictures))
            seconds[way].append(answer["seconds"])
            sent[way] = answer["sent_bytes"]
    rows = []
    for way, values in seconds.items():
        median = statistics.median(values)
        rows.append(
            {
                "mbit": link.mbit,
                "rtt_ms": link.rtt_s * 1e3,
                "way": way,
                "median_seconds": median,
                "spread": [min(values), max(values)],
                "sent_bytes": sent[way],
                "predicted_seconds": predicted[way].seconds,
                "predicted_bytes": predicted[way].sent_bytes,
                "predicted_to_measured": predicted[way].seconds / median,
            }
        )
        comparison = f"{median:.3f} s, predicted {predicted[way].seconds:.3f}"
        print(f"{link.mbit:g} Mbit/s, {link.rtt_s * 1e3:g} ms, {way}: {comparison}", flush=True)
    return rows


if __name__ == "__main__":
    main()
