"""The sections on what travels and what grows."""

from __future__ import annotations

from typing import Any

from tools.bench.report_tables import table, told_environment


def wire(document: dict[str, Any]) -> str:
    """Formats against a plain copy and send."""
    rows = [
        [
            str(row["images"]),
            row["name"],
            f"{row['share']:.4f}",
            f"{row['median_ms']:,.2f}",
            f"{row['spread_ms'][0]:,.2f} to {row['spread_ms'][1]:,.2f}",
            f"{row['ratio']:,.2f}",
        ]
        for row in document["rows"]
    ]
    names = ["images", "format", "bytes, of the fp16 tensors", "median ms", "spread ms", "times the copy and send"]
    return (
        "## The wire\n\n"
        "Pictures of the 2B model (196 visual tokens, 2048 wide, three DeepStack levels, 3.2 MB in fp16), "
        "from arrays in one process to tensors in another over loopback, "
        f"{document['rounds']} alternating rounds, medians; ratios within a round.\n\n"
        + table(names, rows, text=2)
        + told_environment(document)
    )


def end_to_end(document: dict[str, Any]) -> str:
    """Ways to the first token over links, and what was predicted."""
    rows = [
        [
            f"{row['mbit']:g}",
            f"{row['rtt_ms']:g}",
            row["way"],
            f"{row['median_seconds']:.3f}",
            f"{row['spread'][0]:.3f} to {row['spread'][1]:.3f}",
            f"{row['predicted_seconds']:.3f}",
            f"{row['predicted_to_measured']:.3f}",
            f"{row['sent_bytes']:,}",
        ]
        for row in document["rows"]
    ]
    names = ["Mbit/s", "round trip ms", "way", "median s", "spread s", "predicted s", "to measured", "bytes sent"]
    model, speeds = document["model"], document["speeds"]
    return (
        "## Time to the first token\n\n"
        f"Random weights: language model of {model['layers']} layers, {model['width']} wide, vision encoder of "
        f"{model['tower_layers']} layers, {model['tower_width']} wide; one picture of 448x448, a JPEG of "
        f"{document['file_bytes'] / 1e3:.0f} kB. Device and servers share this machine's cores; the link is "
        f"emulated between two network namespaces. {document['rounds']} rounds, all ways in turn. Predicted "
        f"by `tools/plan` from stages measured before: encoding on the device {speeds['device_encode']:.3f} s, on the "
        f"server {speeds['server_encode']:.3f} s, prefill {speeds['server_prefill']:.3f} s.\n\n"
        + table(names, rows, text=0)
        + told_environment(document)
    )


def smaller(document: dict[str, Any]) -> str:
    """What was tried below the packings."""
    rows = [
        [row["name"], f"{row['share']:.3f}", f"{row['same_answers']:.1%}", f"{row['accuracy']:.1%}"]
        for row in document["rows"]
    ]
    names = ["tried", "bytes, of fp16", "answers as in fp32", "accuracy"]
    return (
        "## Smaller still, tried and not offered\n\n"
        f"Reference checkpoint, {document['questions']} held-out questions, accuracy unchanged "
        f"{document['accuracy_unchanged']:.1%}; bases fitted to the pictures of {document['fitted_on']} others.\n\n"
        + table(names, rows, text=1)
        + told_environment(document)
    )


def concurrency(document: dict[str, Any]) -> str:
    """The server with more requests at a time."""
    rows = [
        [
            str(row["at_once"]),
            f"{row['tokens_per_second']:.1f}",
            f"{row['spread'][0]:.1f} to {row['spread'][1]:.1f}",
            f"{row['first_token_p50_s'] * 1e3:,.0f}",
            f"{row['between_tokens_p50_s'] * 1e3:,.0f}",
        ]
        for row in document["rows"]
    ]
    names = ["requests at once", "tokens/s", "spread", "first token p50 ms", "between tokens p50 ms"]
    return (
        "## The server with more requests at once\n\n"
        f"Random weights, language model of {document['model']['layers']} layers, {document['model']['width']} wide, "
        f"{document['new_tokens']} new tokens each, closed loop, {document['rounds']} rounds.\n\n"
        + table(names, rows, text=0)
        + told_environment(document)
    )


def growth(document: dict[str, Any]) -> str:
    """Fitted exponents."""
    rows = [
        [
            row["part"],
            row["name"],
            f"{row['points'][0][0]:g} to {row['points'][-1][0]:g}",
            f"{row['exponent']:.2f}",
            "" if row["least"] is None else f"{row['least']:.2f}",
            f"{row['within']:.2f}",
        ]
        for row in document["rows"]
    ]
    names = ["what", "of", "range", "exponent", "at least", "a point is off by at most, times"]
    return (
        "## Cost of growth\n\n"
        "`cost = a · n^k`, fitted to the figures above. For the encoder `at least` is the exponent of its "
        "multiplications over the same range, for the wire that of its bytes.\n\n"
        "![Costs against sizes, on logarithmic axes](images/growth.svg)\n\n"
        + table(names, rows, text=2)
        + told_environment(document)
    )
