"""The sections on what travels and what grows."""

from __future__ import annotations

from qwen3vl_edge.tools.dev.bench.report.tables import Row, figure, plain, section, spread


def wire(document: Row) -> str:
    """Formats against a plain copy and send."""
    text = (
        "Pictures of the 2B model (196 visual tokens, 2048 wide, three DeepStack levels, 3.2 MB in fp16), "
        "from arrays in one process to tensors in another over loopback, "
        f"{document['rounds']} alternating rounds, medians; ratios within a round."
    )
    columns = {
        "images": plain("images"),
        "format": plain("name"),
        "bytes, of the fp16 tensors": figure("share", ".4f"),
        "median ms": figure("median_ms", ",.2f"),
        "spread ms": spread("spread_ms", ",.2f"),
        "times the copy and send": figure("ratio", ",.2f"),
    }
    return section(document, "The wire", text, columns, words=2)


def end_to_end(document: Row) -> str:
    """Ways to the first token over links, and what was predicted."""
    model, speeds, picture = document["model"], document["speeds"], document.get("picture", 448)
    text = (
        f"Random weights: language model of {model['layers']} layers, {model['width']} wide, vision encoder of "
        f"{model['tower_layers']} layers, {model['tower_width']} wide; one picture of {picture}x{picture}, a JPEG of "
        f"{document['file_bytes'] / 1e3:.0f} kB. Device and servers share this machine's cores; the link is "
        f"emulated between two network namespaces. {document['rounds']} rounds, all ways in turn. Predicted "
        f"by `tools/plan` from stages measured before: encoding on the device {speeds['device_encode']:.3f} s, on the "
        f"server {speeds['server_encode']:.3f} s, prefill {speeds['server_prefill']:.3f} s."
    )
    columns = {
        "Mbit/s": figure("mbit", "g"),
        "round trip ms": figure("rtt_ms", "g"),
        "way": plain("way"),
        "median s": figure("median_seconds", ".3f"),
        "spread s": spread("spread", ".3f"),
        "predicted s": figure("predicted_seconds", ".3f"),
        "to measured": figure("predicted_to_measured", ".3f"),
        "bytes sent": figure("sent_bytes", ","),
    }
    more = f", {picture}x{picture}, {model['width']} wide" if "picture" in document else ""
    return section(document, "Time to the first token" + more, text, columns, words=0)


def smaller(document: Row) -> str:
    """What was tried below the packings."""
    text = (
        f"Reference checkpoint, {document['questions']} held-out questions, accuracy unchanged "
        f"{document['accuracy_unchanged']:.1%}."
    )
    columns = {
        "tried": plain("name"),
        "bytes, of fp16": figure("share", ".3f"),
        "answers as in fp32": figure("same_answers", ".1%"),
        "accuracy": figure("accuracy", ".1%"),
    }
    return section(document, "Smaller still, tried and not offered", text, columns, words=1)


def concurrency(document: Row) -> str:
    """The server with more requests at a time."""
    text = (
        f"Random weights, language model of {document['model']['layers']} layers, {document['model']['width']} wide, "
        f"{document['new_tokens']} new tokens each, closed loop, {document['rounds']} rounds."
    )
    columns = {
        "requests at once": plain("at_once"),
        "tokens/s": figure("tokens_per_second", ".1f"),
        "spread": spread("spread", ".1f"),
        "first token p50 ms": figure("first_token_p50_s", ",.0f", 1e3),
        "between tokens p50 ms": figure("between_tokens_p50_s", ",.0f", 1e3),
    }
    return section(document, "The server with more requests at once", text, columns, words=0)


def growth(document: Row) -> str:
    """Fitted exponents."""
    text = (
        "`cost = a · n^k`, fitted to the figures above. For the encoder `at least` is the exponent of its "
        "multiplications over the same range, for the wire that of its bytes.\n\n"
        "![Costs against sizes, on logarithmic axes](../images/growth.svg)"
    )
    columns = {
        "what": plain("part"),
        "of": plain("name"),
        "range": lambda row: f"{row['points'][0][0]:g} to {row['points'][-1][0]:g}",
        "exponent": figure("exponent", ".2f"),
        "at least": figure("least", ".2f"),
        "a point is off by at most, times": figure("within", ".2f"),
    }
    return section(document, "Cost of growth", text, columns, words=2)
