"""Training batches: one layout (kind and grid) each, so that all samples share the visual prefix."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_edge.tools.dev.train_reference.looks import (
    DIGIT_LAYER,
    NAME_LAYER,
    Look,
    cells_under,
    coverage,
    least_cover,
    named_things,
    shared_factors,
    thing_box,
)
from qwen3vl_edge.tools.dev.train_reference.questions import (
    Question,
    clip_questions,
    description,
    lesson,
    pair_questions,
    scene_questions,
)
from qwen3vl_edge.tools.dev.train_reference.scenes import (
    COLOURS,
    SHAPES,
    Clip,
    Scene,
    colour_clip,
    draw_scene,
    motion_clip,
    number_scene,
    object_scene,
)
from qwen3vl_edge.tools.dev.train_reference.sizes import FRAMES, IMAGE_SIZES, IMAGE_WEIGHTS, PAIR_SIZES, VIDEO_SIZES

KINDS = ("objects", "number", "pair", "clip")
IGNORE = -100
_KEY_WORDS = (
    *COLOURS,
    *SHAPES,
    "crosses",
    "circles",
    "squares",
    "triangles",
    "stars",
    "left",
    "right",
    "top",
    "bottom",
    "up",
    "down",
    "above",
    "below",
    "first",
    "second",
    "Yes",
    "No",
    "no",
    *"0123456789",
)


@dataclass(frozen=True)
class Cells:
    """What covers each merged token, for the dense auxiliary loss; int64 [tokens], 0 is nothing.

    `place` is float32 [tokens, 2]: x and y, 0 to 1, of the centre of what covers it (of itself, where nothing does).
    """

    colour: NDArray[np.int64]
    shape: NDArray[np.int64]
    digit: NDArray[np.int64]
    centre: NDArray[np.int64]
    place: NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Pictures (all frames of all items, in order) and the questions about them."""

    scenes: tuple[Scene, ...]
    questions: list[Question]


@dataclass(frozen=True)
class Batch:
    """Arrays of one batch of B samples.

    Attributes:
        kind: "image" or "video".
        grids: int64 [B·items, 3].
        pixels: float32 [patches, 1536].
        cells: targets per merged token over the whole batch.
        input_ids, labels, weights: [B, L], right padded.
        tasks: the task of the first question of each sample.
        looks: where names and digits are to be looked up.
    """

    kind: str
    grids: NDArray[np.int64]
    pixels: NDArray[np.float32]
    cells: Cells
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    tasks: list[str]
    looks: list[Look]


class Vocabulary:
    """Token ids of the pieces that a conversation is made of."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._cache: dict[str, list[int]] = {}
        names = ("vision_start", "vision_end", "image_pad", "video_pad", "im_end", "endoftext")
        self.id: dict[str, int] = {name: self.encode(f"<|{name}|>")[0] for name in names}
        self.key = {self._raw.encode(f" {word}").ids[-1] for word in _KEY_WORDS}
        self.key |= {self._raw.encode(word).ids[0] for word in _KEY_WORDS}

    def encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._raw.encode(text).ids
        return self._cache[text]

    def words(self, words: tuple[str, ...]) -> list[int]:
        """The single token of each word as it stands inside a sentence."""
        return [self._raw.encode(f" {word}").ids[-1] for word in words]


def patchify(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`pixel_values` of frame pairs, equal to the HF processor's: uint8 [T, 2, H, W, 3] to float32 [T·h·w, 1536]."""
    t, pair, height, width, _ = frames.shape
    values = (frames.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.5)
    h, w = height // 32, width // 32
    blocks = values.reshape(t, pair, h, 2, 16, w, 2, 16, 3)
    # [t, block row, block column, row, column, channel, frame, y, x]
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(t * h * w * 4, -1)


def cells_of(scene: Scene) -> Cells:
    """What covers each merged token of one picture or frame pair."""
    rows, columns = scene.height // 32, scene.width // 32
    best = np.zeros((3, rows, columns))
    labels = np.zeros((4, rows, columns), np.int64)
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    place = np.stack([x, y], axis=-1).astype(np.float32)

    def cover(channel: int, label: int, box: tuple[float, float, float, float], least: float) -> None:
        area = coverage(scene, box)
        win = (area > best[channel]) & (area >= least)
        best[channel][win] = area[win]
        labels[channel][win] = label
        place[win] = (box[0] + box[2]) / 2 / scene.width, (box[1] + box[3]) / 2 / scene.height

    for thing in scene.things:
        cover(0, 1 + list(COLOURS).index(thing.colour), thing_box(thing), least_cover(thing))
        cover(1, 1 + SHAPES.index(thing.shape), thing_box(thing), least_cover(thing))
        labels[3, min(rows - 1, int(thing.y // 32)), min(columns - 1, int(thing.x // 32))] = 1
    if scene.number is not None:
        for value, *box in scene.number.boxes:
            cover(2, 1 + value, (box[0], box[1], box[2], box[3]), 60.0)
    colour, shape, digit, centre = labels.reshape(4, -1)
    return Cells(colour, shape, digit, centre, place.reshape(-1, 2))


def _join_cells(cells: list[Cells]) -> Cells:
    names = ("colour", "shape", "digit", "centre", "place")
    return Cells(*(np.concatenate([getattr(item, name) for item in cells]) for name in names))


def make_sample(rng: random.Random, kind: str, size: tuple[int, int], level: float, taught: bool = True) -> Sample:
    """One sample; `level` 0 to 1 is the curriculum: few and short first."""
    height, width = size
    most = 1 + round(4 * level)
    while True:
        if kind == "objects":
            # Half of them with two or three things: where a question first has a wrong thing to look at.
            few = rng.random() < 0.5
            scene = object_scene(rng, width, height, min(most, 3 if few else 5), min(most, 2) if few else 1)
            scenes: tuple[Scene, ...] = (scene,)
            questions = (lesson if taught else scene_questions)(rng, scenes[0])
        elif kind == "number":
            scenes = (number_scene(rng, width, height, rng.randint(1, 1 + round(3 * level))),)
            questions = scene_questions(rng, scenes[0])
        elif kind == "pair":
            scenes = tuple(object_scene(rng, width, height, rng.choice((1, min(most, 4)))) for _ in range(2))
            questions = pair_questions(rng, *scenes)
        else:
            clip: Clip = rng.choice((motion_clip, motion_clip, colour_clip))(rng, width, height, FRAMES)
            scenes = clip.frames
            questions = clip_questions(rng, clip)
        if questions:
            return Sample(scenes, questions)


def random_layout(rng: random.Random, level: float, warm: bool) -> tuple[str, tuple[int, int]]:
    """Kind and size of the next batch; while the encoder warms up alone, only pictures of objects and of numbers."""
    later = min(1.0, 2 * level)  # pairs and clips come once single pictures are under way
    kind = rng.choices(KINDS, (6, 4, 0, 0) if warm else (6, 3.5, 1.7 * later, 1.4 * later))[0]
    if kind == "clip":
        return kind, rng.choice(VIDEO_SIZES)
    if kind == "pair":
        return kind, rng.choice(PAIR_SIZES)
    while True:
        size = rng.choices(IMAGE_SIZES, IMAGE_WEIGHTS)[0]
        if kind == "objects" or size[1] >= 128 or level < 0.5:
            return kind, size


def make_batch(
    rng: random.Random,
    vocabulary: Vocabulary,
    kind: str,
    size: tuple[int, int],
    count: int,
    level: float,
    turns: int = 5,
    task: str | None = None,
) -> Batch:
    """A batch of `count` samples; with `task`, single-turn samples whose question is of that task."""
    samples: list[Sample] = []
    while len(samples) < count:
        sample = make_sample(rng, kind, size, level, taught=task is None)
        questions = [item for item in sample.questions if task is None or item.task == task][:turns]
        if task is None and kind == "objects":
            questions.append(description(rng, sample.scenes[0]))
        if questions:
            samples.append(Sample(sample.scenes, questions))
    video = kind == "clip"
    frames = np.stack([_render(rng, scene, jitter=task is None and not video) for s in samples for scene in s.scenes])
    height, width = size
    pairs = frames.reshape(-1, 2, height, width, 3) if video else np.stack([frames, frames], axis=1)
    shown = [s.scenes[1::2] if video else s.scenes for s in samples]
    cells = _join_cells([cells_of(scene) for scenes in shown for scene in scenes])
    items = 1 if video else len(samples[0].scenes)
    grid = [FRAMES // 2 if video else 1, height // 16, width // 16]
    rows = [_tokens(vocabulary, s.questions, video, items, grid) for s in samples]
    looks = [
        look
        for row, s in enumerate(samples)
        for look in _looks(vocabulary, s.questions, shown[row], rows[row][0], rows[row][3], row)
    ]
    length = max(len(row[0]) for row in rows)
    ids = np.full((count, length), vocabulary.id["endoftext"], np.int64)
    labels = np.full((count, length), IGNORE, np.int64)
    weights = np.zeros((count, length), np.float32)
    for row, (tokens, targets, weight, _) in enumerate(rows):
        ids[row, : len(tokens)], labels[row, : len(tokens)], weights[row, : len(tokens)] = tokens, targets, weight
    return Batch(
        "video" if video else "image",
        np.tile(np.array([grid], np.int64), (count * items, 1)),
        patchify(pairs),
        cells,
        ids,
        labels,
        weights,
        [s.questions[0].task for s in samples],
        looks,
    )


def _render(rng: random.Random, scene: Scene, jitter: bool) -> NDArray[np.uint8]:
    image = draw_scene(scene)
    if jitter and rng.random() < 0.25:
        # As a camera's picture comes: another size first, then resized to the grid.
        scale = rng.uniform(0.75, 1.6)
        other = (max(32, round(scene.width * scale)), max(32, round(scene.height * scale)))
        image = image.resize(other, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _tokens(
    vocabulary: Vocabulary, questions: list[Question], video: bool, items: int, grid: list[int]
) -> tuple[list[int], list[int], list[float], list[tuple[int, int]]]:
    """One conversation: ids, labels (answers and their <|im_end|>), loss weights, and where each turn's texts begin."""
    special = vocabulary.id
    tokens = grid[1] * grid[2] // 4
    ids = list(vocabulary.encode("<|im_start|>user\n"))
    for _ in range(items):
        if video:
            ids.append(special["vision_start"])
            for frame in range(grid[0]):
                ids += vocabulary.encode(f"<{(4 * frame + 1) / 4:.1f} seconds>")
                ids += [special["vision_start"], *[special["video_pad"]] * tokens, special["vision_end"]]
            ids.append(special["vision_end"])
        else:
            ids += [special["vision_start"], *[special["image_pad"]] * tokens, special["vision_end"]]
    labels, weights = [IGNORE] * len(ids), [0.0] * len(ids)
    begins = []
    for index, question in enumerate(questions):
        before = vocabulary.encode("<|im_start|>user\n") if index else []
        silent = [*before, *vocabulary.encode(question.text + "<|im_end|>\n<|im_start|>assistant\n")]
        answer = [*vocabulary.encode(question.answer), special["im_end"]]
        newline = vocabulary.encode("\n")
        begins.append((len(ids) + len(before), len(ids) + len(silent)))
        ids += [*silent, *answer, *newline]
        labels += [*[IGNORE] * len(silent), *answer, *[IGNORE] * len(newline)]
        weights += [*[0.0] * len(silent), *(4.0 if token in vocabulary.key else 1.0 for token in answer)]
        weights += [0.0] * len(newline)
    return ids, labels, weights, begins


def _looks(
    vocabulary: Vocabulary,
    questions: list[Question],
    scenes: tuple[Scene, ...],
    ids: list[int],
    begins: list[tuple[int, int]],
    row: int,
) -> list[Look]:
    """Where one conversation's names and digits are to be looked up."""
    pads = (vocabulary.id["image_pad"], vocabulary.id["video_pad"])
    visual = np.array([index for index, token in enumerate(ids) if token in pads], np.int64)
    per_scene = len(visual) // len(scenes)
    pair = len(scenes) == 2 and ids[visual[0]] == vocabulary.id["image_pad"]
    found = []
    for question, texts in zip(questions, begins, strict=True):
        for text, begin in zip((question.text, question.answer), texts, strict=True):
            for end, things in named_things(text, scenes):
                query = begin + len(vocabulary.encode(text[:end])) - 1
                keys = [
                    visual[index * per_scene + cells_under(scenes[index], thing_box(thing), least_cover(thing))]
                    for index, thing in things
                ]
                factors = shared_factors(things, pair)
                found.append(Look(NAME_LAYER, row, query, np.concatenate(keys), factors))
        number = scenes[0].number
        if number is not None and question.task == "number":
            start = question.answer.index(number.text)
            for index, (digit, *box) in enumerate(number.boxes):
                # The token before the digit is the one that has to see it.
                query = texts[1] + len(vocabulary.encode(question.answer[:start])) + index - 1
                under = cells_under(scenes[0], (box[0], box[1], box[2], box[3]), 60.0)
                found.append(Look(DIGIT_LAYER, row, query, visual[under], (-1, -1, digit, -1)))
    return found


def training_batch(seed: int, step: int, folder: Path, level: float, count: int, warm: bool) -> Batch:
    """The batch of a step, the same for the same seed."""
    rng = random.Random(seed * 1_000_003 + step)
    kind, size = random_layout(rng, level, warm)
    area = size[0] * size[1] / (128 * 128) * {"objects": 1, "number": 0.4, "pair": 2, "clip": 4}[kind]
    # Small pictures and short conversations: more of them. Digits are the finest thing that the encoder has to see.
    samples = round(count / area**0.8) if kind == "number" else round(count / max(1.0, area**0.8))
    return make_batch(rng, _vocabulary(folder), kind, size, max(8, samples), level)


_VOCABULARIES: dict[Path, Vocabulary] = {}


def _vocabulary(folder: Path) -> Any:
    if folder not in _VOCABULARIES:
        _VOCABULARIES[folder] = Vocabulary(folder)
    return _VOCABULARIES[folder]
