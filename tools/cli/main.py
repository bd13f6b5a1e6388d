"""`qwen3vl-edge`: one command per job; each imports what it needs only when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Qwen3-VL on two machines: the vision encoder on the device, the language model on a server.",
)

edge_app = typer.Typer(invoke_without_command=True)
app.add_typer(edge_app, name="edge")

BundleOption = Annotated[Path, typer.Option("--bundle", help="Bundle folder made by `export`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads of the encoder; 0 for all.")]
BackendOption = Annotated[
    str, typer.Option(help="Encoder backend: onnxruntime, openvino, openvino-bf16, tensorrt, tensorrt_rtx, pytorch.")
]
ProviderOption = Annotated[
    str, typer.Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, nv-tensorrt-rtx or openvino.")
]
TargetOption = Annotated[
    str | None, typer.Option(help="Which engine of the bundle (TensorRT); the first that fits this GPU.")
]
PreprocessOption = Annotated[
    str, typer.Option(help="auto, lean (no torch), lean-uint8 (and the uint8 graphs) or reference (qwen-vl-utils).")
]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of pictures; generated ones by default.")]
WireOption = Annotated[
    str, typer.Option(help="fp16, fp32, bf16, or fewer bytes: fp8, int8, int4, basis-int8, basis-int4.")
]
PrecisionOption = Annotated[str | None, typer.Option(help="Which precision of the bundle; the first by default.")]


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or a hub id such as Qwen/Qwen3-VL-2B-Instruct.")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder to write; replaced only when complete.")],
    buckets: Annotated[str, typer.Option(help="Image buckets, HEIGHTxWIDTH in pixels, comma separated.")] = "448x448",
    video: Annotated[str, typer.Option(help="Video buckets, FRAMESxHEIGHTxWIDTH, comma separated.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or fp32,fp16.")] = "fp32",
    dynamic: Annotated[bool, typer.Option(help="Also write the dynamic-shape graph.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Write the vision encoder of a checkpoint as an ONNX bundle, checked against PyTorch."""
    from qwen3vl_edge.tools.cli.export import run

    run(model, out, buckets, video, precision, dynamic, as_json)


@app.command()
def build(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder made by `export`.")] = None,
    target: Annotated[str, typer.Option(help="Where the engine will run; see --list.")] = "this-gpu",
    precision: Annotated[str | None, typer.Option(help="Of the bundle; fp16 by default where it has it.")] = None,
    buckets: Annotated[str, typer.Option(help="Image buckets, HEIGHTxWIDTH in pixels; all of the bundle's.")] = "",
    video: Annotated[str, typer.Option(help="Video buckets, FRAMESxHEIGHTxWIDTH; all of the bundle's.")] = "",
    layout: Annotated[str, typer.Option(help="profiles: one plan for all buckets; per-bucket: one each.")] = "profiles",
    workspace: Annotated[str, typer.Option(help="Scratch memory for the builder, as 2GiB; the target's.")] = "",
    timing_cache: Annotated[Path | None, typer.Option(help="Timing cache file (tensorrt).")] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 fastest build, 5 best engine.")
    ] = None,
    strip_weights: Annotated[bool, typer.Option(help="Plans without weights, refitted when loaded.")] = False,
    list_targets: Annotated[bool, typer.Option("--list", help="Show the targets and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT or TensorRT-RTX engines from a bundle, into it."""
    from qwen3vl_edge.contract.errors import InputError
    from qwen3vl_edge.export.tensorrt.build_job import BuildRequest
    from qwen3vl_edge.tools.cli.build import print_targets, run

    if list_targets:
        print_targets(as_json)
        return
    if bundle is None:
        raise InputError(
            "no bundle given", field="BUNDLE", remedy="Make one with: qwen3vl-edge export MODEL --out BUNDLE"
        )
    request = BuildRequest(
        target=target,
        precision=precision,
        layout=layout,
        timing_cache=timing_cache,
        optimization_level=optimization_level,
        strip_weights=strip_weights,
    )
    run(bundle, request, buckets, video, workspace, as_json)


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder made by `export`.")],
    data: Annotated[Path, typer.Option(help="Folder of pictures and clips, or JSON lines with `messages`.")],
    precision: Annotated[str, typer.Option(help="int8 or fp8 (e4m3).")] = "int8",
    samples: Annotated[int, typer.Option(help="Pictures and clips to observe.")] = 256,
    method: Annotated[str, typer.Option(help="How ranges are chosen: max, entropy, percentile or mse.")] = "max",
    smooth: Annotated[float, typer.Option(help="SmoothQuant's alpha, 0 to 1; 0 for none.")] = 0.5,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Products to leave unquantized, as blocks.0.* ; may repeat.")
    ] = None,
    auto_exclude: Annotated[
        float | None, typer.Option(help="Cosine to hold: the products that suffer most are left out until it does.")
    ] = None,
    rest: Annotated[
        str | None, typer.Option(help="fp32 or fp16 for all else; fp32 for int8 (CPUs), fp16 for fp8 (GPUs).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice among the data.")] = 0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Quantize a bundle's encoder on your own pictures, into the bundle, and measure what it costs."""
    from qwen3vl_edge.calibration.calibrate import CalibrationRequest
    from qwen3vl_edge.tools.cli.calibrate import run

    patterns = tuple(item.strip() for entry in exclude or () for item in entry.split(",") if item.strip())
    request = CalibrationRequest(
        precision=precision,
        data=data,
        samples=samples,
        method=method,
        smooth=smooth,
        exclude=patterns,
        auto_exclude=auto_exclude,
        rest=rest,
        seed=seed,
        threads=threads,
    )
    run(bundle, request, as_json)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    bundle: BundleOption,
    server: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    image: Annotated[list[str] | None, typer.Option(help="Picture: path, URL or data URI. May repeat.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Clip: path or URL. May repeat.")] = None,
    messages: Annotated[Path | None, typer.Option(help="A conversation in Qwen's format (JSON), before it.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = None,
    provider: ProviderOption = "cpu",
    target: TargetOption = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder, for --backend pytorch.")] = None,
    wire_dtype: WireOption = "fp16",
    wire_zstd: Annotated[bool, typer.Option(help="Compress what is sent, without loss.")] = False,
    preprocess: PreprocessOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Ask about pictures and clips: encode here, answer there, and print where the time went."""
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.tools.cli.ask import run

    backend_options = BackendOptions(
        precision=precision, threads=threads, model=model, provider=provider, target=target
    )
    options = EdgeOptions(
        backend=backend,
        backend_options=backend_options,
        wire_dtype=wire_dtype,
        wire_zstd=wire_zstd,
        preprocess=preprocess,
    )
    run(question, bundle, server, image or [], video or [], messages, max_new_tokens, options, as_json)


@app.command()
def server(
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free one. [default: 8000]")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="As transformers' device_map: auto, cpu, cuda, … [default: auto]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")] = None,
    attention: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2. [default: sdpa]")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Requests that generate at once. [default: 8]")] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(help="Ask for tokens; `server-token` writes this file. [default: anybody may]")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM), to serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    allow_pixels: Annotated[
        bool | None, typer.Option("--allow-pixels", help="Load the vision tower too, and take pictures in chats.")
    ] = None,
    wire_basis: Annotated[
        list[Path] | None, typer.Option(help="Basis that devices may send embeddings in (`fit-basis`); may repeat.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="transformers, or vllm for several GPUs or machines. [default: transformers]")
    ] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs that share each layer (vllm). [default: 1]")] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(help="Groups of layers (vllm). [default: 1]")] = None,
) -> None:
    """Serve the language model alone: embeddings in, answers out."""
    from qwen3vl_edge.tools.cli.server import run

    options = {"model": model, "host": host, "port": port, "device_map": device_map, "dtype": dtype}
    files = {"tokens_file": tokens_file, "tls_cert": tls_cert, "tls_key": tls_key}
    options |= {"attention": attention, "max_batch": max_batch, "allow_pixels": allow_pixels}
    options |= {"engine": engine, "tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    run(config, {**options, **files, "wire_basis": wire_basis or None})


@app.command("server-token")
def server_token(
    name: Annotated[str, typer.Argument(help="The client's name; what it brings is held under it.")],
    file: Annotated[Path, typer.Option("--file", help="The server's tokens_file; made if missing.")],
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it expires; never by default.")
    ] = None,
) -> None:
    """Make a token for a client of `server` and print it, once: the file keeps only its hash."""
    from qwen3vl_edge.tools.cli.server_token import run

    run(name, file, days)


@app.command()
def parity(
    bundle: BundleOption,
    model: Annotated[str, typer.Option(help="The checkpoint that the bundle was exported from.")],
    images: ImagesOption = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with `messages`; questions about the pictures.")
    ] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = "cpu",
    target: TargetOption = None,
    precision: PrecisionOption = None,
    wire_dtype: WireOption = "fp16",
    preprocess: PreprocessOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    threads: ThreadsOption = 0,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    gate: Annotated[Path | None, typer.Option(help="TOML file with the release's thresholds.")] = None,
    dump: Annotated[Path | None, typer.Option(help="A device's dump, in place of an engine that runs here.")] = None,
    against: Annotated[Path | None, typer.Option(help="Bundle of the other side; this one by default.")] = None,
    against_backend: Annotated[str | None, typer.Option(help="Backend of the other side.")] = None,
    against_provider: Annotated[str | None, typer.Option(help="Provider of the other side.")] = None,
    against_precision: Annotated[str | None, typer.Option(help="Precision of the other side.")] = None,
    against_target: Annotated[str | None, typer.Option(help="Engine of the other side.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Only name the first layer at which both sides part.")
    ] = False,
    tolerance: Annotated[float | None, typer.Option(help="Relative L2 of a layer, for --bisect.", min=0.0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold the split against the unsplit model: embeddings, tokens, logits. Exit code 1 if they differ.

    With any --against option a second side is measured beside the first, on the same pixels.
    """
    from qwen3vl_edge.contract.errors import InputError
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.tools.cli.parity import run, run_bisect
    from qwen3vl_edge.tools.parity.run import ParityRequest

    backend_options = BackendOptions(
        precision=precision, threads=threads, model=Path(model), provider=provider, target=target
    )
    options = EdgeOptions(
        backend=backend, backend_options=backend_options, wire_dtype=wire_dtype, preprocess=preprocess
    )
    other = None
    if any(
        item is not None for item in (against, against_backend, against_provider, against_precision, against_target)
    ):
        against_options = BackendOptions(
            against_precision, threads, Path(model), against_provider or "cpu", against_target
        )
        other = (
            against or bundle,
            EdgeOptions(against_backend or "onnxruntime", against_options, wire_dtype, preprocess="reference"),
        )
    request = ParityRequest(
        bundle, model, options, images, prompts, max_new_tokens, dump, other, gate, layers=report is not None
    )
    if not bisect:
        run(request, report, as_json)
    elif report is not None or gate is not None:
        raise InputError("--bisect goes without --report and --gate", field="--bisect", remedy="Run them apart.")
    else:
        run_bisect(request, tolerance, as_json)


@app.command("fit-basis")
def fit_basis(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder made by `export`.")],
    data: Annotated[Path, typer.Option(help="Folder of pictures and clips, or JSON lines with `messages`.")],
    samples: Annotated[int, typer.Option(help="Pictures and clips to encode.")] = 256,
    cosine: Annotated[float, typer.Option(help="Mean cosine that held-out embeddings shall keep.")] = 0.999,
    rank: Annotated[int, typer.Option(help="Directions of every tensor, in place of --cosine; 0 for none.")] = 0,
    precision: PrecisionOption = None,
    seed: Annotated[int, typer.Option(help="Of the choice among the data.")] = 0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit a basis to the encoder's embeddings, for --wire-dtype basis-int8 and basis-int4, into the bundle."""
    from qwen3vl_edge.calibration.wire_basis import BasisRequest
    from qwen3vl_edge.tools.cli.fit_basis import run

    run(bundle, BasisRequest(data, samples, cosine, rank, precision, seed, threads), as_json)


@app.command()
def plan(
    bundle: BundleOption,
    link_mbit: Annotated[float, typer.Option(min=0.01, help="Link to the server, million bits per second.")],
    rtt_ms: Annotated[float, typer.Option(min=0.0, help="To the server and back.")],
    server_encode_ms: Annotated[float, typer.Option(min=0.0, help="Preprocessing and encoder on an unsplit server.")],
    server_prefill_ms: Annotated[float, typer.Option(min=0.0, help="The prompt on the server: `server.*` of `ask`.")],
    device_encode_ms: Annotated[
        float | None, typer.Option(min=0.0, help="The same on the device, all pictures; measured here by default.")
    ] = None,
    device_prefill_ms: Annotated[
        float | None, typer.Option(min=0.0, help="The prompt on the device, where the language model fits there.")
    ] = None,
    image: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels; the bundle's first bucket by default.")] = "",
    images: Annotated[int, typer.Option(min=1, help="Pictures in the question.")] = 1,
    jpeg_kb: Annotated[float, typer.Option(min=0.0, help="Kilobytes of one picture's file.")] = 60.0,
    pack_ms: Annotated[float, typer.Option(min=0.0, help="To pack and unpack, for int8 and int4.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Predict which answers first over a link: the split, an unsplit server, or everything on the device."""
    from qwen3vl_edge.tools.cli.plan import StageTimes, run
    from qwen3vl_edge.tools.plan.transfer import LinkSpeed

    link = LinkSpeed(link_mbit, rtt_ms / 1e3)
    stages = StageTimes(device_encode_ms, server_encode_ms, server_prefill_ms, device_prefill_ms, pack_ms)
    run(bundle, image, images, jpeg_kb, link, stages, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="encoder, wire, packing, server, concurrency, e2e, growth, …")],
) -> None:
    """Measure one part against its peers and its floor; `bench NAME --help` shows its options."""
    from qwen3vl_edge.tools.cli.bench import run

    run(name, context.args)


@edge_app.callback()
def edge(
    context: typer.Context,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder made by `export`.")] = None,
    server: Annotated[str | None, typer.Option(help="URL of the server. [default: http://127.0.0.1:8000]")] = None,
    server_kind: Annotated[
        str | None, typer.Option(help="qwen3vl, or openai for a vLLM with --enable-mm-embeds. [default: qwen3vl]")
    ] = None,
    server_model: Annotated[str | None, typer.Option(help="The foreign server's name of the model.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free one. [default: 8080]")] = None,
    unix_socket: Annotated[Path | None, typer.Option(help="Also listen on this socket.")] = None,
    backend: Annotated[str | None, typer.Option(help="Encoder backend, as for `ask`.")] = None,
    provider: Annotated[str | None, typer.Option(help="ONNX Runtime provider, as for `ask`.")] = None,
    precision: PrecisionOption = None,
    preprocess: Annotated[str | None, typer.Option(help="As for `ask`. [default: auto]")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep embeddings in.")] = None,
    media_folder: Annotated[
        list[Path] | None, typer.Option(help="Clients may name files under this folder. May repeat.")
    ] = None,
) -> None:
    """The daemon on the device: a local OpenAI-compatible API; pictures are encoded here, only embeddings leave."""
    if context.invoked_subcommand is not None:
        return
    if bundle is None and config is None:
        sys.stdout.write(context.get_help() + "\n")
        return
    from qwen3vl_edge.tools.cli.edge import run

    options = {"bundle": bundle, "server": server, "host": host, "port": port, "unix_socket": unix_socket}
    options |= {"backend": backend, "provider": provider, "precision": precision, "cache": cache}
    options |= {"server_kind": server_kind, "server_model": server_model, "preprocess": preprocess}
    run(config, options | {"media_folders": media_folder or None})


@edge_app.command()
@app.command()
def dump(
    bundle: BundleOption,
    out: Annotated[Path, typer.Option("--out", help="Dump file to write (.npz).")],
    images: ImagesOption = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = "cpu",
    target: TargetOption = None,
    precision: PrecisionOption = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder, for --backend pytorch.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also intermediate outputs (onnxruntime, pytorch).")] = False,
    polygraphy: Annotated[
        Path | None, typer.Option(help="Folder for polygraphy's files: <bucket>.inputs.json and .outputs.json.")
    ] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write what this device's engine makes of pictures, for `parity --dump` on a workstation."""
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.tools.cli.dump import run

    backend_options = BackendOptions(
        precision=precision, threads=threads, model=model, provider=provider, target=target
    )
    run(bundle, out, images, EdgeOptions(backend=backend, backend_options=backend_options), layers, polygraphy, as_json)


@app.command()
def inspect(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")], as_json: JsonOption = False) -> None:
    """Check a bundle and show its buckets, sizes and measured parity."""
    from qwen3vl_edge.tools.cli.inspect import run

    run(bundle, as_json)


@app.command()
def demo(
    work: Annotated[Path, typer.Option(help="Where the bundle is written.")] = Path("bundles/demo"),
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("reference/qwen3vl-tiny"),
    samples: Annotated[Path, typer.Option(help="Folder with questions.jsonl.")] = Path("reference/samples"),
) -> None:
    """Export the reference checkpoint, start a server, ask, and compare with the unsplit model."""
    from qwen3vl_edge.tools.demo import run

    run(work, model, samples)


def main() -> None:
    """Entry point: errors of the contract become one line on stderr and exit code 2."""
    from qwen3vl_edge.contract.errors import ContractError

    try:
        app()
    except ContractError as error:
        sys.stderr.write(f"qwen3vl-edge: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("qwen3vl-edge: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
