"""docs/benchmarks.md from the JSON that the benches wrote: figures are generated, never typed.

python -m tools.bench.report docs/benchmarks > docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tools.bench.report_links import concurrency, end_to_end, growth, smaller, wire
from tools.bench.report_tables import table, told_environment

HEADER = """# Benchmarks

Written by `python -m tools.bench.report docs/benchmarks` from the JSON beside it; not for editing. Each section names
its command, machine and versions.
"""
NO_GPU = """
## On a GPU

Not yet measured on a GPU. `python -m tools.bench.encoder --bundle BUNDLE --model CHECKPOINT --out
docs/benchmarks/encoder-gpu.json` measures engines, ONNX Runtime's providers and PyTorch side by side there.
"""


def page(folder: Path) -> str:
    """The page for all JSON files that are there."""
    parts = [HEADER]
    parts += [_engines(document) for document in _read(folder, "engines*.json")]
    documents = _read(folder, "encoder*.json")
    parts += [_encoder(document) for document in documents]
    if not any(document["environment"]["gpu"] for document in documents):
        parts.append(NO_GPU)
    parts += [_startup(document) for document in _read(folder, "startup*.json")]
    parts += [wire(document) for document in _read(folder, "wire*.json")]
    parts += [_packing(document) for document in _read(folder, "packing*.json")]
    parts += [smaller(document) for document in _read(folder, "smaller*.json")]
    parts += [end_to_end(document) for document in _read(folder, "end-to-end*.json")]
    parts += [_server(document) for document in _read(folder, "server*.json")]
    parts += [concurrency(document) for document in _read(folder, "concurrency*.json")]
    parts += [growth(document) for document in _read(folder, "growth*.json")]
    parts += [_soak(document) for document in _read(folder, "soak*.json")]
    parts += [_fuzz(document) for document in _read(folder, "fuzz*.json")]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _read(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [{"name": path.stem} | json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def _engines(document: dict[str, Any]) -> str:
    rows = [
        [
            row["size"],
            row["target"],
            row["precision"],
            row["layout"],
            str(row["plans"]),
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['bytes'] / row['weights']:.3f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_memory'] / 1e9:.1f}",
        ]
        for row in document["rows"]
    ]
    names = ["tower", "target", "precision", "layout", "plans", "MB", "times the weights", "seconds", "peak GB"]
    buckets = ", ".join(document["rows"][0]["buckets"])
    return (
        f"## Building engines, {' and '.join(dict.fromkeys(row['size'] for row in document['rows']))} tower\n\n"
        f"Encoders with random weights, {len(document['rows'][0]['buckets'])} buckets ({buckets}), "
        f"{document['rows'][0]['library']}, no GPU. "
        "Seconds and peak memory are of the whole build, in a process of its own.\n\n"
        + table(names, rows, text=4)
        + told_environment(document)
    )


def _encoder(document: dict[str, Any]) -> str:
    rows = [
        [
            row["bucket"],
            str(row["threads"]),
            row["candidate"],
            f"{row['median_seconds'] * 1e3:,.1f}",
            f"{row['spread'][0] * 1e3:,.1f} to {row['spread'][1] * 1e3:,.1f}",
            "" if row["device_median_seconds"] is None else f"{row['device_median_seconds'] * 1e3:.2f}",
            f"{row['times_faster_than_baseline']:.2f}",
            f"{row['median_seconds'] / row['floor_seconds']:.2f}" if row["floor_seconds"] else "",
            "" if row["load_seconds"] is None else f"{row['load_seconds']:.1f}",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}",
            "" if row["cosine_to_baseline"] is None else f"{row['cosine_to_baseline']:.6f}",
        ]
        for row in document["rows"]
    ]
    names = [
        "bucket",
        "threads",
        "candidate",
        "median ms",
        "spread ms",
        "on the GPU ms",
        f"times faster than {document['rows'][0]['baseline']}",
        "times the floor",
        "load s",
        "peak GB",
        "cosine to it",
    ]
    refused = "".join(f"- {name}: {reason}\n" for name, reason in document["not_run"].items())
    return (
        f"## Encoder, {document['model']}, {document['name']}\n\n"
        f"Alternating runs, {document['rows'][0]['rounds']} rounds, "
        "from pixel values in host memory to embeddings in host memory; ratios are medians of those within a round. "
        "The floor is the encoder's multiplications over the machine's measured peak of that type, all of them in int8 "
        "for int8. Load is from nothing imported to the encoder loaded; peak memory is the process's own, with mapped "
        "weights.\n\n"
        + table(names, rows, text=3)
        + (f"\n{document['note']}\n" if document.get("note") else "")
        + (f"\nNot run:\n\n{refused}" if refused else "")
        + told_environment(document)
    )


def _startup(document: dict[str, Any]) -> str:
    rows = [
        [
            row["preprocess"],
            f"{row['ready_seconds']:.2f}",
            f"{row['spread_seconds'][0]:.2f} to {row['spread_seconds'][1]:.2f}",
            f"{row['ready_bytes'] / 2**20:.0f}",
            f"{row['worked_bytes'] / 2**20:.0f}",
        ]
        for row in document["rows"]
    ]
    worked = f"MiB after {document['requests']} pictures"
    names = ["preprocessing", "median seconds to /readyz 200", "spread", "MiB when ready", worked]
    return (
        "## The daemon's start\n\n"
        f"Alternating starts, {document['rows'][0]['rounds']} of each, medians; resident memory.\n\n"
        + table(names, rows, text=1)
        + told_environment(document)
    )


def _packing(document: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            f"{row['bytes']:,}",
            f"{row['share']:.3f}",
            f"{row['zstd_share']:.3f}",
            " + ".join(f"{value:.1f}" for value in row.get("zstd_ms", ())),
            f"{row['encode_ms']:.1f}",
            f"{row['decode_ms']:.1f}",
            "" if row["pays_below_mbit"] is None else f"{row['pays_below_mbit']:,.0f}",
            f"{row['min_cosine']:.6f}",
            f"{row['same_answers']:.1%}",
            f"{row['accuracy']:.1%}",
        ]
        for row in document["rows"]
    ]
    names = [
        "`--wire-dtype`",
        "bytes",
        "share",
        "share with zstd",
        "zstd and back ms",
        "pack ms",
        "unpack ms",
        "pays below Mbit/s",
    ]
    names += ["lowest cosine", "answers as in fp32", "accuracy"]
    return (
        "## Fewer bytes on the wire\n\n"
        f"Answers and accuracy: {document['questions']} held-out questions, reference checkpoint, fp32 graphs. Bytes "
        "and times: one picture of 196 visual tokens of the 2B model, 2048 wide, three DeepStack levels, medians of "
        f'{document["rounds"]} alternating rounds. A link slower than "pays below" has the packed '
        "picture sooner.\n\n" + table(names, rows, text=1) + told_environment(document)
    )


def _server(document: dict[str, Any]) -> str:
    model, ratios = document["model"], document["ratios"]
    threads = f", {document['threads']} threads compute" if "threads" in document else ""
    said = {
        "http": "server, binary wire",
        "engine": "the same engine without HTTP",
        "json": "server, JSON lists of numbers",
        "unsplit": "unsplit model, one at a time",
    }
    rows = [
        [
            said[name],
            f"{found['tokens_per_second']:.1f}",
            f"{ratios[f'{name} / engine']:.3f}",
            f"{found['requests_per_second']:.2f}",
            _times(found["first_token_s"]),
            _times(found["between_tokens_s"]),
            f"{found['sent_bytes'] / 1e6:.1f}",
        ]
        for name, found in document["candidates"].items()
    ]
    names = ["candidate", "tokens/s", "to the engine", "requests/s", "first token", "between tokens", "MB sent"]
    open_rows = [
        [
            f"{found['share']:.0%}",
            f"{found['arrivals_per_second']:.2f}",
            f"{found['answered']} of {found['requests']}",
            _times(found["first_token_s"]),
            _times(found["between_tokens_s"]),
        ]
        for found in document.get("open_loop", ())
    ]
    open_names = ["of the closed loop's rate", "arrivals/s", "answered", "first token", "between tokens"]
    arrivals = (
        "\nArrivals that wait for nobody (Poisson):\n\n" + table(open_names, open_rows, text=1) if open_rows else ""
    )
    return (
        "## The server under a fleet\n\n"
        f"Random weights: language model of {model['layers']} layers, {model['width']} wide, vision encoder of "
        f"{model['tower_layers']} layers, {model['tower_width']} wide, {model['dtype']}. {document['devices']} devices "
        f"on the server's own machine, at most {document['max_batch']} requests at once{threads}, closed loop, "
        f"medians of {document['rounds']} alternating rounds, ratios within one. Times in ms at p50 / p95 / p99.\n\n"
        + table(names, rows, text=1)
        + arrivals
        + told_environment(document)
    )


def _times(percentiles: dict[str, float]) -> str:
    return " / ".join(f"{1000 * value:,.0f}" for value in percentiles.values())


def _soak(document: dict[str, Any]) -> str:
    row = document["rows"][0]
    faults = row["faults"]
    rows = [
        ["requests, at a time", f"{row['requests']:,}, {row['at_a_time']}"],
        ["seconds", f"{row['seconds']:,.0f}"],
        ["answered as by the undisturbed daemon", ", ".join(f"{kind} {n:,}" for kind, n in row["answered"].items())],
        ["refused with a reason", ", ".join(f"{reason} {n}" for reason, n in row["refused"].items()) or "none"],
        ["told to come back (429), and did", f"{row['told_to_come_back']:,}"],
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
    note = f"\n{row['note']}\n" if row.get("note") else ""
    return (
        f"## Soak of the daemon, {row['requests']:,} requests\n\n"
        "Reference checkpoint, mixed conversations, cache and spool on a small file system of their own.\n\n"
        + table(["", ""], rows, text=2)
        + note
        + told_environment(document)
    )


def _fuzz(document: dict[str, Any]) -> str:
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
        + table(["", ""], rows, text=2)
        + told_environment(document)
    )


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
