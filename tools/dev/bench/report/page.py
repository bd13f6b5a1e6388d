"""docs/reports/benchmarks.md from the JSON that the benches wrote: figures are generated, never typed.

python -m qwen3vl_edge.tools.dev.bench.report docs/reports/benchmarks > docs/reports/benchmarks.md
"""

from __future__ import annotations

import json
from pathlib import Path

from qwen3vl_edge.tools.dev.bench.report.engine import engine
from qwen3vl_edge.tools.dev.bench.report.gpu import gpu
from qwen3vl_edge.tools.dev.bench.report.links import concurrency, end_to_end, growth, smaller, wire
from qwen3vl_edge.tools.dev.bench.report.tables import (
    Row,
    environment_line,
    figure,
    noted,
    plain,
    plain_table,
    section,
    spread,
)

HEADER = """# Benchmarks

Written by `python -m qwen3vl_edge.tools.dev.bench.report docs/reports/benchmarks` from the JSON
beside it; not for editing. Each section names its command, machine and versions, with the modules' names of today.
"""
NO_GPU = """
## On a GPU

Not yet measured on a GPU. `python -m qwen3vl_edge.tools.dev.bench.encoder --bundle BUNDLE --model CHECKPOINT --out
docs/reports/benchmarks/encoder-gpu.json` measures engines, ONNX Runtime's providers and PyTorch side by side there.
"""


def page(folder: Path) -> str:
    """The page for all JSON files that are there."""
    parts = [HEADER]
    parts += [_engines(document) for document in _read(folder, "engines*.json")]
    documents = _read(folder, "encoder*.json")
    parts += [_encoder(document) for document in documents]
    kits = _read(folder, "gpu*.json")
    parts += [gpu(document) for document in kits]
    if not kits and not any(document["environment"]["gpu"] for document in documents):
        parts.append(NO_GPU)
    parts += [_startup(document) for document in _read(folder, "startup*.json")]
    parts += [wire(document) for document in _read(folder, "wire*.json")]
    parts += [_packing(document) for document in _read(folder, "packing*.json")]
    parts += [smaller(document) for document in _read(folder, "smaller*.json")]
    parts += [end_to_end(document) for document in _read(folder, "end-to-end*.json")]
    parts += [_server(document) for document in _read(folder, "server*.json")]
    parts += [engine(document) for document in _read(folder, "engine-*.json")]
    parts += [concurrency(document) for document in _read(folder, "concurrency*.json")]
    parts += [growth(document) for document in _read(folder, "growth*.json")]
    parts += [_soak(document) for document in _read(folder, "soak*.json")]
    parts += [_fuzz(document) for document in _read(folder, "fuzz*.json")]
    parts += [_attacks(document) for document in _read(folder, "attack*.json")]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _read(folder: Path, pattern: str) -> list[Row]:
    return [{"name": path.stem} | json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def _engines(document: Row) -> str:
    first = document["rows"][0]
    text = (
        f"Encoders with random weights, {len(first['buckets'])} buckets ({', '.join(first['buckets'])}), "
        f"{first['library']}, no GPU. "
        "Seconds and peak memory are of the whole build, in a process of its own."
    )
    columns = {
        "tower": plain("size"),
        "target": plain("target"),
        "precision": plain("precision"),
        "layout": plain("layout"),
        "plans": plain("plans"),
        "MB": figure("bytes", ",.0f", 1e-6),
        "times the weights": lambda row: f"{row['bytes'] / row['weights']:.3f}",
        "seconds": figure("seconds", ".1f"),
        "peak GB": figure("peak_memory", ".1f", 1e-9),
    }
    sizes = " and ".join(dict.fromkeys(row["size"] for row in document["rows"]))
    return section(document, f"Building engines, {sizes} tower", text, columns, words=4)


def _encoder(document: Row) -> str:
    first = document["rows"][0]
    text = (
        f"Alternating runs, {first['rounds']} rounds, "
        "from pixel values in host memory to embeddings in host memory; ratios are medians of those within a round. "
        "The floor is the encoder's multiplications over the machine's measured peak of that type, all of them in int8 "
        "for int8. Load is from nothing imported to the encoder loaded; peak memory is the process's own, with mapped "
        "weights."
    )
    columns = {
        "bucket": plain("bucket"),
        "threads": plain("threads"),
        "candidate": plain("candidate"),
        "median ms": figure("median_seconds", ",.1f", 1e3),
        "spread ms": spread("spread", ",.1f", 1e3),
        "on the GPU ms": figure("device_median_seconds", ".2f", 1e3),
        f"times faster than {first['baseline']}": figure("times_faster_than_baseline", ".2f"),
        "times the floor": lambda row: (
            f"{row['median_seconds'] / row['floor_seconds']:.2f}" if row["floor_seconds"] else ""
        ),
        "load s": figure("load_seconds", ".1f"),
        "peak GB": figure("peak_bytes", ".2f", 1e-9),
        "cosine to it": figure("cosine_to_baseline", ".6f"),
    }
    refused = "".join(f"- {name}: {reason}\n" for name, reason in document["not_run"].items())
    after = noted(document) + (f"\nNot run:\n\n{refused}" if refused else "")
    return section(document, f"Encoder, {document['model']}, {document['name']}", text, columns, words=3, after=after)


def _startup(document: Row) -> str:
    text = f"Alternating starts, {document['rows'][0]['rounds']} of each, medians; resident memory."
    columns = {
        "preprocessing": plain("preprocess"),
        "median seconds to /readyz 200": figure("ready_seconds", ".2f"),
        "spread": spread("spread_seconds", ".2f"),
        "MiB when ready": figure("ready_bytes", ".0f", 2**-20),
        f"MiB after {document['requests']} pictures": figure("worked_bytes", ".0f", 2**-20),
    }
    return section(document, "The daemon's start", text, columns, words=1)


def _packing(document: Row) -> str:
    clock = document.get("clock", "by the wall clock")
    text = (
        f"Answers and accuracy: {document['questions']} held-out questions, reference checkpoint, fp32 graphs. Bytes "
        "and times: one picture of 196 visual tokens of the 2B model, 2048 wide, three DeepStack levels, medians of "
        f'{document["rounds"]} alternating rounds, {clock}. A link slower than "pays below" has the packed '
        "picture sooner."
    )
    text += f" {document['note']}" if document.get("note") else ""
    columns = {
        "`--wire-dtype`": plain("name"),
        "bytes": figure("bytes", ","),
        "share": figure("share", ".3f"),
        "share with zstd": figure("zstd_share", ".3f"),
        "zstd and back ms": lambda row: " + ".join(f"{value:.1f}" for value in row["zstd_ms"]),
        "pack ms": figure("encode_ms", ".1f"),
        "unpack ms": figure("decode_ms", ".1f"),
        "pays below Mbit/s": figure("pays_below_mbit", ",.0f"),
        "lowest cosine": figure("min_cosine", ".6f"),
        "answers as in fp32": figure("same_answers", ".1%"),
        "of a mix of conversations": figure("same_answers_mix", ".1%"),
        "accuracy": figure("accuracy", ".1%"),
    }
    return section(document, "Fewer bytes on the wire", text, columns, words=1)


def _server(document: Row) -> str:
    model, ratios = document["model"], document["ratios"]
    threads = f", {document['threads']} threads compute" if "threads" in document else ""
    labels = {
        "http": "server, binary wire",
        "engine": "the same engine without HTTP",
        "json": "server, JSON lists of numbers",
        "unsplit": "unsplit model, one at a time",
    }
    rows = [
        [
            labels[name],
            f"{row['tokens_per_second']:.1f}",
            f"{ratios[f'{name} / engine']:.3f}",
            f"{row['requests_per_second']:.2f}",
            _times(row["first_token_s"]),
            _times(row["between_tokens_s"]),
            f"{row['sent_bytes'] / 1e6:.1f}",
        ]
        for name, row in document["candidates"].items()
    ]
    names = ["candidate", "tokens/s", "to the engine", "requests/s", "first token", "between tokens", "MB sent"]
    open_rows = [
        [
            f"{row['share']:.0%}",
            f"{row['arrivals_per_second']:.2f}",
            f"{row['answered']} of {row['requests']}",
            _times(row["first_token_s"]),
            _times(row["between_tokens_s"]),
        ]
        for row in document.get("open_loop", ())
    ]
    open_names = ["of the closed loop's rate", "arrivals/s", "answered", "first token", "between tokens"]
    arrivals = (
        "\nArrivals that wait for nobody (Poisson):\n\n" + plain_table(open_names, open_rows, words=1)
        if open_rows
        else ""
    )
    return (
        "## The server under a fleet\n\n"
        f"Random weights: language model of {model['layers']} layers, {model['width']} wide, vision encoder of "
        f"{model['tower_layers']} layers, {model['tower_width']} wide, {model['dtype']}. {document['devices']} devices "
        f"on the server's own machine, at most {document['max_batch']} requests at once{threads}, closed loop, "
        f"medians of {document['rounds']} alternating rounds, ratios within one. Times in ms at p50 / p95 / p99.\n\n"
        + plain_table(names, rows, words=1)
        + arrivals
        + environment_line(document)
    )


def _times(percentiles: dict[str, float]) -> str:
    return " / ".join(f"{1000 * value:,.0f}" for value in percentiles.values())


def _soak(document: Row) -> str:
    row = document["rows"][0]
    faults = row["faults"]
    rows = [
        ["requests, at a time", f"{row['requests']:,}, {row['at_a_time']}"],
        ["seconds", f"{row['seconds']:,.0f}"],
        ["answered as by the undisturbed daemon", ", ".join(f"{kind} {n:,}" for kind, n in row["answered"].items())],
        ["refused with a reason", ", ".join(f"{reason} {n}" for reason, n in row["refused"].items()) or "none"],
        ["answered 429, waited and sent again", f"{row['told_to_come_back']:,}"],
        ["clients that left by themselves", f"{row['left']:,}"],
        ["jobs accepted", f"{row['jobs_accepted']:,}"],
        ["answered otherwise", str(len(row["wrong"]))],
        ["neither answered nor refused as they should", str(len(row["lost"]))],
        ["server killed and restarted", str(faults["kills"])],
        ["connections cut", str(faults["cuts"])],
        ["slow network, full disk", f"{faults['slow']}, {faults['disk_full']} times"],
        ["resident memory after warm-up", f"{row['memory_after_warm_up'] / 1e6:,.0f} MB"],
        ["in the last tenth", f"{row['memory_at_the_end'] / 1e6:,.0f} MB, {row['memory_growth']:.3f} times"],
    ]
    return (
        f"## Soak of the daemon, {row['requests']:,} requests\n\n"
        "Reference checkpoint, mixed conversations, cache and spool on a small file system of their own.\n\n"
        + plain_table(["", ""], rows, words=2)
        + noted(row)
        + environment_line(document)
    )


def _fuzz(document: Row) -> str:
    row = document["rows"][0]
    rows = [
        ["mutated requests, over a port", f"{row['bodies']:,}, {row['over_a_port']:,}"],
        ["seconds", f"{row['seconds']:,.0f}"],
        ["answers by status", ", ".join(f"{status} {count:,}" for status, count in row["statuses"].items())],
        ["5xx, errors in the log, answers without an error object", str(len(row["faults"]))],
        [
            "the unmutated requests afterwards",
            "answered as before" if row["answers_unchanged"] else "answered otherwise",
        ],
        [
            "resident memory after warm-up, the most",
            f"{row['memory_after_warm_up'] / 1e6:,.0f} MB, {row['memory_most'] / 1e6:,.0f} MB",
        ],
        ["in the last tenth", f"{row['memory_at_the_end'] / 1e6:,.0f} MB, {row['memory_growth']:.3f} times"],
    ]
    return (
        f"## Mutated requests to the server, {row['bodies']:,}\n\n"
        "The real application and a real engine; `closed`: no HTTP, so no answer.\n\n"
        + plain_table(["", ""], rows, words=2)
        + environment_line(document)
    )


def _attacks(document: Row) -> str:
    text = (
        "Each attack of `docs/guides/server/security.md`, sent from threads of the lowest priority, beside an honest "
        "client. MiB: resident memory beyond the steady state at its most, for all that were sent at once, and 30 s "
        "after. CPU: of a request, the honest client's share included. ms: of the honest client's `/healthz`. "
        "Wait: its longest for an answer. Status 0: the connection was closed."
    )
    columns = {
        "attack": plain("name"),
        "answers": lambda row: ", ".join(f"{status} {count:,}" for status, count in row["statuses"].items()),
        "MiB": figure("peak_mib", ".0f"),
        "kept": figure("kept_mib", ".0f"),
        "CPU s": figure("cpu_s", ".3f"),
        "ms, p99": figure("p99_ms", ".0f"),
        "longest": figure("longest_ms", ".0f"),
        "wait s": figure("answer_s", ".1f"),
    }
    return section(document, "Attacks", text, columns, words=2, after=noted(document))
