"""One self-contained HTML page of a parity run: no script, nothing fetched, readable in light and dark."""

from __future__ import annotations

from string import Template

from qwen3vl_edge.tools.parity.findings import Findings
from qwen3vl_edge.tools.parity.page.html import Html, element, join, text
from qwen3vl_edge.tools.parity.page.sections import (
    anchors,
    answer_section,
    distribution_section,
    encoder_section,
    facts_section,
    first_module,
    gate_section,
    layer_section,
    picture_section,
)
from qwen3vl_edge.tools.parity.page.style import AGAINST, CSS, SUBJECT

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity: $title</title>
<style>$css</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def page_of(findings: Findings) -> str:
    """The whole page."""
    sections = [gate_section(findings), encoder_section(findings)]
    if findings.layers is not None:
        sections.append(layer_section(findings, findings.layers))
    sections += [picture_section(findings), answer_section(findings), distribution_section(findings)]
    body = join([_header(findings), _cards(findings), *sections, facts_section(findings)])
    return PAGE.substitute(title=text(findings.candidate), css=CSS, body=body.markup)


def _header(findings: Findings) -> Html:
    report = findings.report
    verdict = element(
        "span",
        "Parity holds" if report.passed else "Parity is broken",
        class_=f"verdict {'pass' if report.passed else 'fail'}",
    )
    links = join(element("a", name, href=f"#{anchor}") for anchor, name in anchors(findings))
    return join(
        [
            element("h1", "Parity report"),
            element("p", _sides(findings), class_="soft"),
            verdict,
            element("nav", links),
        ]
    )


def _sides(findings: Findings) -> Html:
    model = findings.facts["bundle"]["model"]
    parts = [element("span", "", class_="dot", style=f"background: {SUBJECT}"), findings.candidate]
    if findings.against is not None:
        parts += [" beside ", element("span", "", class_="dot", style=f"background: {AGAINST}"), findings.against]
    return Html("".join(text(part) for part in [*parts, f", against PyTorch in fp32; model {model}"]))


def _cards(findings: Findings) -> Html:
    report = findings.report
    exact = report.exact_prompts
    worst = min(report.encoder, key=lambda row: (row.distance.cosine == row.distance.cosine, row.distance.cosine))
    cards = [
        (f"{worst.distance.cosine:.7f}", f"least cosine, {worst.output} at {worst.bucket}"),
        (f"{max(row.distance.relative_l2 for row in report.encoder):.1e}", "largest relative L2 of an output"),
    ]
    if exact:
        same = sum(item.agrees for item in exact)
        cards += [
            (f"{same} of {len(exact)}", "identical answers at native grids"),
            (f"{report.max_kl:.1e}", "largest KL, nats"),
        ]
    else:
        cards.append(("—", "answers not measured"))
    if findings.layers is not None:
        cards.append((first_module(findings.layers), "first module to drift"))
    inner = join(
        Html(f'<div class="card"><b>{text(figure)}</b><span>{text(meaning)}</span></div>') for figure, meaning in cards
    )
    return element("div", inner, class_="cards")
