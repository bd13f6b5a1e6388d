"""Pictures and clips drawn with Pillow: coloured shapes and numbers on a light ground."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 165, 60),
    "blue": (45, 80, 215),
    "yellow": (240, 205, 30),
    "purple": (145, 50, 185),
    "orange": (250, 130, 25),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")


@dataclass(frozen=True)
class Thing:
    """One coloured shape: centre and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    r: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Number:
    """A number of 1 to 4 digits; `boxes` are (digit, left, top, right, bottom) in pixels."""

    text: str
    boxes: tuple[tuple[int, float, float, float, float], ...]
    left: float
    top: float
    size: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture: size in pixels, ground colour, what is on it."""

    width: int
    height: int
    ground: tuple[int, int, int]
    things: tuple[Thing, ...] = ()
    number: Number | None = None


@dataclass(frozen=True)
class Clip:
    """Eight frames; `kind` is "motion" (direction in `answer`) or "colours" (first, last)."""

    frames: tuple[Scene, ...]
    kind: str
    facts: dict[str, str] = field(default_factory=dict)


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB picture."""
    image = Image.new("RGB", (scene.width, scene.height), scene.ground)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(draw, thing)
    if scene.number is not None:
        number = scene.number
        draw.text((number.left, number.top), number.text, font=ImageFont.load_default(number.size), fill=number.rgb)
    return image


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y, r = thing.x, thing.y, thing.r
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=thing.rgb)
    elif thing.shape == "square":
        side = r * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill=thing.rgb)
    elif thing.shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=thing.rgb)
    elif thing.shape == "cross":
        arm = r * 0.34
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=thing.rgb)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=thing.rgb)
    else:
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, r * 1.1, r * 0.45)
        tips = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        draw.polygon([(float(a), float(b)) for a, b in tips], fill=thing.rgb)


def random_ground(rng: random.Random) -> tuple[int, int, int]:
    base = rng.randint(205, 250)
    return tuple(max(0, min(255, base + rng.randint(-8, 8))) for _ in range(3))  # type: ignore[return-value]


def random_rgb(rng: random.Random, colour: str) -> tuple[int, int, int]:
    return tuple(max(0, min(255, value + rng.randint(-14, 14))) for value in COLOURS[colour])  # type: ignore[return-value]


def place_things(rng: random.Random, width: int, height: int, count: int) -> tuple[Thing, ...]:
    """`count` shapes that do not overlap, or as many as fit."""
    things: list[Thing] = []
    # Often all different, so that most pictures have many questions with one right answer.
    shapes = rng.sample(SHAPES, len(SHAPES)) if rng.random() < 0.6 else rng.choices(SHAPES, k=count)
    colours = rng.sample(list(COLOURS), len(COLOURS)) if rng.random() < 0.6 else rng.choices(list(COLOURS), k=count)
    largest = min(26.0, 0.3 * min(width, height))
    for _ in range(count * 30):
        if len(things) == count:
            break
        r = rng.uniform(11, largest if count <= 3 else min(largest, 18))
        x, y = rng.uniform(r + 3, width - r - 3), rng.uniform(r + 3, height - r - 3)
        if all((x - o.x) ** 2 + (y - o.y) ** 2 > (1.25 * (r + o.r) + 4) ** 2 for o in things):
            colour, shape = colours[len(things)], shapes[len(things)]
            things.append(Thing(shape, colour, x, y, r, random_rgb(rng, colour)))
    return tuple(things)


def object_scene(rng: random.Random, width: int, height: int, most: int, least: int = 1) -> Scene:
    """A scene of `least` to `most` shapes."""
    while True:
        things = place_things(rng, width, height, rng.randint(least, most))
        if len(things) >= least:
            return Scene(width, height, random_ground(rng), things)


def number_scene(rng: random.Random, width: int, height: int, digits: int) -> Scene:
    """A scene with a number of `digits` digits that fits, and nothing else."""
    size = rng.randint(40, 60)
    text = str(rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))
    while True:
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        if right - left <= width - 12 and bottom - top <= height - 12:
            break
        size -= 2
    x = rng.uniform(4 - left, width - right - 4)
    y = rng.uniform(4 - top, height - bottom - 4)
    boxes = []
    for index, character in enumerate(text):
        begin = x + font.getlength(text[:index])
        end = x + font.getlength(text[: index + 1])
        boxes.append((int(character), begin, y + top, end, y + bottom))
    rgb = random_rgb(rng, rng.choice(("black", "blue", "red", "purple", "green")))
    return Scene(width, height, random_ground(rng), (), Number(text, tuple(boxes), x, y, size, rgb))


def motion_clip(rng: random.Random, width: int, height: int, frames: int = 8) -> Clip:
    """One shape that moves left, right, up or down by at least a third of the picture."""
    direction = rng.choice(("left", "right", "up", "down"))
    r = rng.uniform(11, min(20.0, 0.2 * min(width, height)))
    horizontal = direction in ("left", "right")
    along, across = (width, height) if horizontal else (height, width)
    travel = rng.uniform(0.35, 0.95) * (along - 2 * r - 6)
    start = rng.uniform(r + 3, along - r - 3 - travel)
    side = rng.uniform(r + 3, across - r - 3)
    colour = rng.choice(list(COLOURS))
    thing = Thing(rng.choice(SHAPES), colour, 0, 0, r, random_rgb(rng, colour))
    ground = random_ground(rng)
    scenes = []
    for index in range(frames):
        step = index / (frames - 1)
        if direction in ("left", "up"):
            step = 1 - step
        place = start + travel * step
        x, y = (place, side) if horizontal else (side, place)
        scenes.append(Scene(width, height, ground, (replace(thing, x=x, y=y),)))
    return Clip(tuple(scenes), "motion", {"direction": direction, "colour": colour, "shape": thing.shape})


def colour_clip(rng: random.Random, width: int, height: int, frames: int = 8) -> Clip:
    """One shape that has one colour first and another later."""
    first, last = rng.sample(list(COLOURS), 2)
    change = rng.choice((2, 4, 6))
    r = rng.uniform(12, min(24.0, 0.25 * min(width, height)))
    x, y = rng.uniform(r + 3, width - r - 3), rng.uniform(r + 3, height - r - 3)
    shape, ground = rng.choice(SHAPES), random_ground(rng)
    rgb = {name: random_rgb(rng, name) for name in (first, last)}
    scenes = []
    for index in range(frames):
        colour = first if index < change else last
        scenes.append(Scene(width, height, ground, (Thing(shape, colour, x, y, r, rgb[colour]),)))
    return Clip(tuple(scenes), "colours", {"first": first, "last": last, "shape": shape})
