"""HTML pieces: text is escaped here and nowhere else, so that no picture's name can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put on a page."""

    markup: str


@dataclass(frozen=True)
class Column:
    """A table column; numbers are right-aligned, long text may break anywhere."""

    title: str
    number: bool = False
    long: bool = False

    @property
    def css(self) -> str:
        return ' class="number"' if self.number else ' class="break"' if self.long else ""


def text(value: Any) -> str:
    """A value as markup: escaped unless it is `Html` already."""
    return value.markup if isinstance(value, Html) else escape(str(value))


def element(name: str, content: Any, **attributes: str) -> Html:
    """`<name …>content</name>`; an attribute `class_` is written `class`."""
    written = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{text(content)}</{name}>")


def join(parts: Iterable[Any]) -> Html:
    """Pieces one after the other."""
    return Html("\n".join(text(part) for part in parts))


def table(columns: Sequence[Column], rows: Iterable[Sequence[Any]], groups: Sequence[tuple[str, int]] = ()) -> Html:
    """A table that scrolls within itself where the window is narrow.

    Args:
        groups: headings above the columns, each with how many columns it spans.
    """
    head = "".join(f"<th{column.css}>{text(column.title)}</th>" for column in columns)
    above = "".join(
        f'<th colspan="{span}"{" class=side" if title else ""}>{text(title)}</th>' for title, span in groups
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{column.css}>{text(value)}</td>" for column, value in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    heading = f"<tr>{above}</tr>" if above else ""
    return Html(
        f'<div class="scroll"><table><thead>{heading}<tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def figure(svg: str, caption: str) -> Html:
    return Html(f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>")


def folded(summary: str, content: Html) -> Html:
    """What few readers need: closed until clicked."""
    return Html(f"<details><summary>{text(summary)}</summary>{content.markup}</details>")


def definitions(pairs: Iterable[tuple[str, Any]]) -> Html:
    return Html("<dl>" + "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in pairs) + "</dl>")


def section(anchor: str, title: str, *content: Any) -> Html:
    inner = join(content).markup
    return Html(f'<section id="{anchor}"><h2>{text(title)}</h2>\n{inner}\n</section>')


def number(value: float, form: str = ".1e") -> Html:
    """A figure inside a sentence, which no line break may cut at its minus."""
    return element("span", format(value, form), class_="figure")


def passed(value: bool, good: str = "ok", bad: str = "failed") -> Html:
    """A verdict that is told by its word as well as by its colour."""
    return element("span", good if value else bad, class_="pass" if value else "fail")
