"""Untrusted JSON: repeated names, and values counted before they are parsed."""

from __future__ import annotations

import json

import pytest

from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.formats.strict_json import check_values, count_values, strict_object


def values_of(document: object) -> int:
    """Values of a parsed document, by its definition (RFC 8259)."""
    if isinstance(document, dict):
        return 1 + sum(map(values_of, document.values()))
    return 1 + sum(map(values_of, document)) if isinstance(document, list) else 1


def most_counted(document: object, text: str) -> int:
    """A list or an object counts as nine at most: its own bracket, and what stands before it."""
    return values_of(document) + text.count('"') + 8 * (text.count("[") + text.count("{"))


@pytest.mark.parametrize(
    "document", [1, [], {}, [[[]]], [1, 2, [3]], {"a": 1, "b": [{}, {"c": [None, True]}]}, [[], [], [{}]], "a,[{"]
)
def test_at_least_as_many_values_are_counted_as_there_are(document: object) -> None:
    text = json.dumps(document)
    counted = count_values(text)
    assert values_of(document) <= counted <= most_counted(document, text)
    assert counted == count_values(text.encode()) == count_values(bytearray(text.encode()))


@pytest.mark.parametrize("text", ["a,b,c,d,[[{", 'he said "a,b", and \\\\', "\\\\\\", '",",', "\u005b,[" * 50])
def test_what_stands_in_strings_is_no_value(text: str) -> None:
    document = json.dumps({"a": text, text: [text, text]})
    assert check_values(document, 20, "body") <= 20
    assert check_values(document.encode(), 20, "body") <= 20
    with pytest.raises(LimitError):
        check_values(document, 18, "body")


def test_very_many_strings_are_many_values() -> None:
    with pytest.raises(LimitError):
        check_values(json.dumps(["a,b"] * 1001), 1000, "body")
    assert check_values(json.dumps(["a,b"] * 990), 1000, "body") == 998


def test_values_are_limited_before_they_are_parsed() -> None:
    assert check_values(b"[1,2,3]", 11, "body") == 11
    with pytest.raises(LimitError, match=r"body has too many JSON values: expected at most 10 \(most\), got 11"):
        check_values(b"[1,2,3]", 10, "body", "most")
    with pytest.raises(LimitError):  # not JSON at all, and never looked at
        strict_object("[" * 100, "header", 50)


@pytest.mark.parametrize("text", ['{"a":1,"b":2,"c":3,"b":4}', '{"x":{"b":1,"a":1,"b":2}}', '{"\\u0062":1,"b":2}'])
def test_the_first_repeated_name_is_named(text: str) -> None:
    with pytest.raises(WireError, match="repeats a name") as found:
        strict_object(text, "header")
    assert found.value.field == "b"


def test_a_repeated_name_is_found_among_very_many() -> None:
    """Counting each name among all of them would take a hundred times as long as this whole file."""
    names = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(WireError) as found:
        strict_object("{" + names + ',"199999":1}', "header")
    assert found.value.field == "199999"
