"""Damaged picture files against device and server: each is decoded, or refused with a reason.

python -m qwen3vl_edge.tools.dev.fuzz.pictures --files 100000 [--seed 1] [--first 0] [--format AVIF]

A file is the same for the same seed and number. It ends with exit code 1 and the numbers of the files that raised
anything but a ContractError or took over 5 s; a decoder that kills the process leaves the last number on the screen.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import FILE_FORMATS, measure_picture
from qwen3vl_edge.server.openai.pixels import open_data_uri

SECONDS_OF_ONE = 5.0
_LIMITS = MediaLimits(max_picture_pixels=2**20)  # a damaged size must not cost seconds
_EXIF_ORIENTATION = 0x0112
# What Pillow writes of each format: options, and modes.
_SAVED: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "PNG": (("RGBA", {}), ("P", {}), ("I;16", {}), ("L", {"frames": 3}), ("RGB", {"exif": True})),
    "JPEG": (("RGB", {"exif": True}), ("L", {"progressive": True}), ("CMYK", {})),
    "WEBP": (("RGB", {"exif": True}), ("RGBA", {"lossless": True}), ("RGB", {"frames": 3})),
    "GIF": (("P", {}), ("L", {"frames": 3})),
    "BMP": (("RGB", {}), ("P", {}), ("1", {}), ("RGBA", {})),
    "TIFF": (
        ("RGB", {"exif": True}),
        ("I;16", {}),
        ("F", {}),
        ("L", {"compression": "tiff_lzw", "frames": 2}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("1", {"compression": "group4"}),
    ),
    "PPM": (("RGB", {}), ("L", {}), ("1", {}), ("I;16", {})),
    "JPEG2000": (("RGB", {}), ("L", {}), ("RGBA", {})),
    "AVIF": (("RGB", {"exif": True}), ("RGBA", {}), ("RGB", {"frames": 2})),
    # With pillow-heif; "chroma" 444 and a lossless one beside the usual 420.
    "HEIF": (
        ("RGB", {"exif": True}),
        ("RGBA", {}),
        ("L", {}),
        ("I;16", {}),
        ("RGB", {"frames": 2}),
        ("RGB", {"quality": -1, "chroma": 444}),
    ),
    "ICO": (("RGBA", {}),),
    "TGA": (("RGB", {"compression": "tga_rle"}), ("LA", {})),
    "DIB": (("RGB", {}),),
    "PCX": (("RGB", {}), ("P", {})),
}


@dataclass(frozen=True)
class DamagedFile:
    """A file, its format before it was damaged, and what was done to it."""

    form: str
    how: str
    content: bytes


@cache
def whole_files(form: str) -> tuple[bytes, ...]:
    """Small files of a format, of several modes."""
    return tuple(_saved(form, mode, dict(options)) for mode, options in _SAVED[form])


def formats() -> tuple[str, ...]:
    """All accepted formats that this Pillow writes."""
    return tuple(form for form in FILE_FORMATS if form in _SAVED)


def damaged_file(seed: int, number: int, form: str | None = None) -> DamagedFile:
    """The file of this number: the same for the same seed."""
    rng = random.Random(f"{seed}:{number}")
    form = form or rng.choice(formats())
    content = bytearray(rng.choice(whole_files(form)))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        how = rng.choice(list(_DAMAGES))
        content = _DAMAGES[how](content, rng)
        done.append(how)
    return DamagedFile(form, ", ".join(done), bytes(content))


def readers() -> dict[str, Callable[[bytes], object]]:
    """Whatever decodes a picture that somebody sent."""
    return {
        "device": lambda data: measure_picture(data, "it", FILE_FORMATS, _LIMITS).see(),
        "client's": lambda data: measure_picture(data, "it", client_formats(), _LIMITS).see(),
        "server": lambda data: open_data_uri(f"data:image/x;base64,{base64.b64encode(data).decode()}", "it", _claim),
    }


def fault(read: Callable[[bytes], object], content: bytes) -> str | None:
    """What is wrong with how a file is read, None where nothing is."""
    begun = time.monotonic()
    try:
        read(content)
    except ContractError as error:
        if not 400 <= error.status < 500 or "\n" in str(error):
            return f"not a refusal: {error.status} {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    taken = time.monotonic() - begun
    return f"took {taken:.1f} s" if taken > SECONDS_OF_ONE else None


def faults(seed: int, numbers: range, form: str | None = None) -> Iterator[str]:
    """One line for each file that is neither decoded nor refused."""
    for number in numbers:
        damaged = damaged_file(seed, number, form)
        for name, read in readers().items():
            if (said := fault(read, damaged.content)) is not None:
                yield f"{number}: {damaged.form} ({damaged.how}), {name}: {said}"


def _claim(pixels: int) -> None:
    if pixels > 2**20:
        raise ContractError("too many")


def _saved(form: str, mode: str, options: dict[str, Any]) -> bytes:
    values = np.random.default_rng(len(form) + len(mode))
    noise = Image.fromarray(values.integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize((80, 48))
    image = noise.convert("L").convert(mode) if mode in ("I;16", "F", "1") else noise.convert(mode)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = 6
        options["exif"] = exif
    if (frames := options.pop("frames", 1)) > 1:
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * (frames - 1)}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _place(content: bytearray, rng: random.Random) -> int:
    """Mostly in the header, where the structure is."""
    return rng.randrange(min(len(content), 200) if rng.random() < 0.6 else len(content)) if content else 0


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if content:
            content[_place(content, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return content


def _cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: _place(content, rng)]


def _remove(content: bytearray, rng: random.Random) -> bytearray:
    place = _place(content, rng)
    del content[place : place + rng.choice((1, 2, 4, 16, 256))]
    return content


def _insert(content: bytearray, rng: random.Random) -> bytearray:
    place = _place(content, rng)
    return content[:place] + rng.randbytes(rng.choice((1, 2, 4, 16, 256))) + content[place:]


def _repeat(content: bytearray, rng: random.Random) -> bytearray:
    place = _place(content, rng)
    piece = content[place : place + rng.choice((4, 12, 64, 1024))]
    return content[:place] + piece * rng.choice((1, 2, 16)) + content[place:]


def _number(content: bytearray, rng: random.Random) -> bytearray:
    """A length or a size at the edge of its type."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 65_535))
    place = _place(content, rng)
    content[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little" if order == "little" else "big")
    return content


def _splice(content: bytearray, rng: random.Random) -> bytearray:
    other = rng.choice(whole_files(rng.choice(formats())))
    return content[: _place(content, rng)] + other[rng.randrange(len(other)) :]


_DAMAGES: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "flip": _flip,
    "cut": _cut,
    "remove": _remove,
    "insert": _insert,
    "repeat": _repeat,
    "number": _number,
    "splice": _splice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--format", choices=formats())
    arguments = parser.parse_args()
    found: list[str] = []
    outcomes: Counter[str] = Counter()
    for start in range(arguments.first, arguments.first + arguments.files, 1000):
        numbers = range(start, min(start + 1000, arguments.first + arguments.files))
        print(f"{start:,}", end="\r", file=sys.stderr, flush=True)
        for line in faults(arguments.seed, numbers, arguments.format):
            found.append(line)
            outcomes[line.split(": ")[2]] += 1
            print(line, flush=True)
    print(f"{arguments.files:,} files of {len(formats())} formats: {len(found)} faults {dict(outcomes) or ''}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
