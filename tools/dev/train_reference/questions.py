"""Questions with one right answer about scenes, pairs of scenes and clips."""

from __future__ import annotations

import random
from dataclasses import dataclass

from qwen3vl_edge.tools.dev.train_reference.scenes import COLOURS, SHAPES, Clip, Scene, Thing

_COUNT_WORDS = ("no", "1", "2", "3", "4", "5", "6")


@dataclass(frozen=True)
class Question:
    """A question, its only right answer, and the task that it counts for."""

    task: str
    text: str
    answer: str


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _objects(count: int, noun: str, plural: str) -> str:
    verb = "is" if count == 1 else "are"
    return f"There {verb} {_COUNT_WORDS[count]} {noun if count == 1 else plural}."


def _alone(things: tuple[Thing, ...], key: str) -> list[Thing]:
    values = [getattr(thing, key) for thing in things]
    return [thing for thing in things if values.count(getattr(thing, key)) == 1]


def _name(things: tuple[Thing, ...], thing: Thing) -> str | None:
    """ "the red circle" where no other object has both."""
    same = [other for other in things if (other.colour, other.shape) == (thing.colour, thing.shape)]
    return f"the {thing.colour} {thing.shape}" if len(same) == 1 else None


def scene_questions(rng: random.Random, scene: Scene) -> list[Question]:
    """Every kind of question that this picture answers without doubt, shuffled."""
    if scene.number is not None:
        text = rng.choice(("What number is shown?", "Which number do you see?", "Read the number."))
        found = [Question("number", text, f"The number is {scene.number.text}.")]
        digits = scene.number.text
        found.append(Question("digit", "What is the first digit?", f"The first digit is {digits[0]}."))
        found.append(Question("digit", "What is the last digit?", f"The last digit is {digits[-1]}."))
        rng.shuffle(found)
        return found
    things = scene.things
    found = _colours(rng, things) + _shapes(rng, things) + _counts(rng, things)
    found += _where(rng, scene) + _relations(rng, things)
    rng.shuffle(found)
    return found


def lesson(rng: random.Random, scene: Scene) -> list[Question]:
    """Questions for one conversation in training, none of which answers another.

    "Where is the red circle?" tells what colour the circle is; a model that may read it there does not
    learn to look. So a conversation asks for colours, or for shapes, or for places.
    """
    if scene.number is not None:
        return scene_questions(rng, scene)
    kind = rng.choices(("colours", "shapes", "places"), (4, 2, 4))[0]
    if kind == "colours":
        found = _colours(rng, scene.things) + _counts(rng, scene.things)[:1]
    elif kind == "shapes":
        found = _shapes(rng, scene.things) + _counts(rng, scene.things)[1:]
    else:
        found = _where(rng, scene) + _relations(rng, scene.things) + _counts(rng, scene.things)[:1]
    rng.shuffle(found)
    return found


def description(rng: random.Random, scene: Scene) -> Question:
    """Everything, from left to right: trains binding, and is asked last because it gives the rest away.

    One form goes from colour to shape and place, the other from shape to colour: each direction has to
    be learnt by itself.
    """
    things = sorted(scene.things, key=lambda item: item.x)
    if rng.random() < 0.5:
        parts = [f"the {thing.shape} is {thing.colour}" for thing in things]
        return Question("describe", "What colours do you see?", f"I see {', '.join(parts)}.")
    parts = []
    for thing in things:
        row = "bottom" if thing.y > scene.height / 2 else "top"
        column = "right" if thing.x > scene.width / 2 else "left"
        parts.append(f"a {thing.colour} {thing.shape} in the {row} {column}")
    return Question("describe", "What do you see?", f"There is {', '.join(parts)}.")


def _colours(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    found = [
        Question("colour", f"What colour is the {thing.shape}?", f"The {thing.shape} is {thing.colour}.")
        for thing in _alone(things, "shape")
    ]
    return rng.sample(found, min(3, len(found)))


def _shapes(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    found = [
        Question("shape", f"What shape is the {thing.colour} object?", f"The {thing.colour} object is a {thing.shape}.")
        for thing in _alone(things, "colour")
    ]
    return rng.sample(found, min(3, len(found)))


def _counts(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    found = [
        Question(
            "count",
            rng.choice(("How many objects are there?", "How many shapes do you see?")),
            _objects(len(things), "object", "objects"),
        )
    ]
    if rng.random() < 0.5:
        colour = rng.choice([thing.colour for thing in things] if rng.random() < 0.8 else list(COLOURS))
        count = sum(thing.colour == colour for thing in things)
        found.append(
            Question(
                "count",
                f"How many {colour} objects are there?",
                _objects(count, f"{colour} object", f"{colour} objects"),
            )
        )
    else:
        shape = rng.choice([thing.shape for thing in things] if rng.random() < 0.8 else list(SHAPES))
        count = sum(thing.shape == shape for thing in things)
        found.append(Question("count", f"How many {_plural(shape)} are there?", _objects(count, shape, _plural(shape))))
    return found


def _where(rng: random.Random, scene: Scene) -> list[Question]:
    found = []
    for thing in scene.things:
        name = _name(scene.things, thing)
        dx, dy = thing.x / scene.width - 0.5, thing.y / scene.height - 0.5
        if name is None or abs(dx) < 0.09 or abs(dy) < 0.09:
            continue
        row, column = ("bottom" if dy > 0 else "top"), ("right" if dx > 0 else "left")
        style = rng.randrange(3)
        if style == 0:
            found.append(Question("where", f"Where is {name}?", f"It is in the {row} {column}."))
        elif style == 1:
            found.append(Question("where", f"Is {name} on the left or on the right?", f"It is on the {column}."))
        else:
            found.append(Question("where", f"Is {name} at the top or at the bottom?", f"It is at the {row}."))
    return rng.sample(found, min(2, len(found)))


def _relations(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    found = []
    for one in things:
        for other in things:
            first, second = _name(things, one), _name(things, other)
            if one is other or first is None or second is None:
                continue
            if abs(one.x - other.x) > 22:
                side = "left" if one.x < other.x else "right"
                found.append(Question("relation", f"Is {first} left or right of {second}?", f"It is to the {side}."))
            if abs(one.y - other.y) > 22:
                side = "above" if one.y < other.y else "below"
                found.append(Question("relation", f"Is {first} above or below {second}?", f"It is {side} it."))
    return rng.sample(found, min(2, len(found)))


def pair_questions(rng: random.Random, first: Scene, second: Scene) -> list[Question]:
    """Comparisons of two pictures."""
    found = []
    if len(first.things) != len(second.things):
        more = "first" if len(first.things) > len(second.things) else "second"
        word, answer = ("more", more) if rng.random() < 0.6 else ("fewer", "second" if more == "first" else "first")
        found.append(
            Question("compare", f"Which picture has {word} objects?", f"The {answer} picture has {word} objects.")
        )
    for key, plural in (("shape", ""), ("colour", " object")):
        for mine, theirs, name in ((first, second, "first"), (second, first, "second")):
            values = {getattr(thing, key) for thing in mine.things} - {getattr(thing, key) for thing in theirs.things}
            if values:
                value = rng.choice(sorted(values))
                found.append(
                    Question("compare", f"Which picture shows a {value}{plural}?", f"The {name} picture does.")
                )
    if len(first.things) == len(second.things) == 1:
        a, b = first.things[0].colour, second.things[0].colour
        answer = f"Yes, both are {a}." if a == b else f"No, one is {a} and one is {b}."
        found += [Question("compare", "Do both objects have the same colour?", answer)] * 2
    rng.shuffle(found)
    return list(dict.fromkeys(found))


def clip_questions(rng: random.Random, clip: Clip) -> list[Question]:
    """Questions about a clip."""
    shape = clip.facts["shape"]
    if clip.kind == "motion":
        noun = rng.choice(("object", shape, f"{clip.facts['colour']} {shape}"))
        found = [
            Question("motion", f"Which way does the {noun} move?", f"It moves {clip.facts['direction']}."),
            Question("colour", f"What colour is the {shape}?", f"The {shape} is {clip.facts['colour']}."),
        ]
    else:
        first, last = clip.facts["first"], clip.facts["last"]
        found = [
            Question("first_colour", "Which colour came first?", f"The {shape} was {first} first."),
            Question("first_colour", "Which colour came last?", f"The {shape} was {last} last."),
        ]
    rng.shuffle(found)
    return found
