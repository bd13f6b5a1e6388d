"""The section of a run of the GPU kit."""

from __future__ import annotations

from collections import Counter

from qwen3vl_edge.tools.dev.bench.report.engine import engine_table
from qwen3vl_edge.tools.dev.bench.report.tables import Row, environment_line, figure, noted, plain_table, table


def gpu(document: Row) -> str:
    """Machine, correctness, the encoder and the server, of a document that `tools.dev.gpu` wrote."""
    title = "toy sizes on a CPU (--dry)" if document["dry"] else document["environment"]["gpu"]
    parts = [f"## GPU kit, {title}\n", _steps(document), _machine(document), _tests(document), _parity(document)]
    parts += [_encoder(document), _server(document)]
    return "\n".join(part for part in parts if part) + noted(document) + environment_line(document)


def _steps(document: Row) -> str:
    steps = "; ".join(f"{row['step']} {row['state']}, {row['seconds']:.0f} s" for row in document["steps"])
    failures = "".join(f"- {row['step']}: {row['reason']}\n" for row in document["failures"])
    return f"Steps: {steps}.\n" + (f"\n{failures}" if failures else "")


def _machine(document: Row) -> str:
    if not document["peaks"]:
        return ""
    row = document["peaks"][0]
    products = ", ".join(f"{name} {row[name] / 1e12:,.1f}" for name in ("fp32", "fp16", "bf16", "int8") if name in row)
    driver = f" Driver {row['driver']}, CUDA {row['driver_cuda']}." if row.get("driver") else ""
    return f"Measured peaks: {products} TFLOP/s (int8: TOP/s), {row['bytes'] / 1e12:,.3f} TB/s.{driver}\n"


def _tests(document: Row) -> str:
    counts = Counter(row["outcome"] for row in document["tests"])
    if not counts:
        return ""
    text = "`pytest -m gpu`: " + ", ".join(f"{n} {name}" for name, n in counts.items()) + ".\n"
    figures = [(row["test"].split("::")[-1], row["figures"]) for row in document["tests"] if row.get("figures")]
    lines = [
        f"- {name}: {', '.join(f'{key} {_figure(value)}' for key, value in found.items())}\n" for name, found in figures
    ]
    return text + ("\n" + "".join(lines) if lines else "")


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _parity(document: Row) -> str:
    if not document["parity"]:
        return ""
    rows = [
        [
            row["candidate"],
            row.get("failed") or row.get("not_here") or ("holds" if row["passed"] else "does not hold"),
            figure("lowest_cosine", ".7f")(row),
            f"{row['answers_equal']} of {row['answers']}" if "answers" in row else "",
            row.get("self_test", ""),
        ]
        for row in document["parity"]
    ]
    names = ["reference checkpoint on", "parity", "lowest cosine", "answers as the unsplit model's", "self-test"]
    return "Parity:\n\n" + plain_table(names, rows, words=2)


def _encoder(document: Row) -> str:
    rows = [row for row in document["encoder"] if "median_seconds" in row]
    if not rows:
        return ""
    base = {(row["size"], row["bucket"], row["candidate"]): row["median_seconds"] for row in rows}

    def faster(row: Row) -> str:
        eager = [base.get((row["size"], row["bucket"], f"transformers {kind}")) for kind in ("fp16", "bf16")]
        best = min((value for value in eager if value is not None), default=None)
        return "" if best is None else f"{best / row['median_seconds']:.2f}"

    columns = {
        "tower": lambda row: str(row["size"]),
        "bucket": lambda row: str(row["bucket"]),
        "candidate": lambda row: str(row["candidate"]),
        "host to host ms": figure("median_seconds", ",.2f", 1e3),
        "on the GPU ms": figure("device_median_seconds", ",.2f", 1e3),
        "floor ms": figure("floor_seconds", ",.2f", 1e3),
        "times faster than transformers, eager, its better half type": faster,
        "first run s": figure("first_seconds", ".1f"),
        "lowest cosine": figure("lowest_cosine", ".7f"),
    }
    text = (
        "Encoder with random weights, medians. Host to host: from pixel values in host memory to embeddings in host "
        "memory. The floor is the products over the measured peak of their type. Cosines are to transformers in fp32 "
        "without TF32, the lowest of all outputs.\n\n"
    )
    failed = "".join(
        f"- {row['size']} {row.get('bucket', '')} {row['candidate']}: {row['failed']}\n"
        for row in document["encoder"]
        if "failed" in row
    )
    return text + table(columns, rows, words=3) + (f"\nNot run:\n\n{failed}" if failed else "")


def _server(document: Row) -> str:
    if not document["server"]:
        return ""
    return "The server's language model, random weights:\n\n" + engine_table(document["server"])
