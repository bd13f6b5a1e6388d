"""One parity run from opened inputs to findings: encoder, layers, answers, judged by the gate."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.open import Bundle, open_model_of
from qwen3vl_edge.contract.errors import InputError, ModelMismatchError
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.tools.parity.candidate import Candidate, open_dump, open_engine
from qwen3vl_edge.tools.parity.dump.identity import bundle_facts
from qwen3vl_edge.tools.parity.encoder import Measured, encoder_rows, measure
from qwen3vl_edge.tools.parity.end_to_end import PromptResult, compare_prompts, open_both
from qwen3vl_edge.tools.parity.findings import Findings, LayerFindings
from qwen3vl_edge.tools.parity.gate import Gate, default_gate, judge
from qwen3vl_edge.tools.parity.gate_file import read_gate
from qwen3vl_edge.tools.parity.layers.drift import measure_layers
from qwen3vl_edge.tools.parity.layers.sources import layers_of, layers_of_graph
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import pictures_of
from qwen3vl_edge.tools.parity.prompts import Prompt, prompts_about, read_prompts
from qwen3vl_edge.tools.parity.report import AgainstReport, Between, ParityReport

Progress = Callable[[str], None]
Answers = tuple[PromptResult, ...]


@dataclass(frozen=True)
class ParityRequest:
    """What to compare.

    Attributes:
        dump: a device's dump in place of an engine that runs here; it has no answers to compare.
        against: bundle and options of the other side.
        gate: thresholds that override the defaults.
        layers: measure the layers even where no limit asks for them.
    """

    bundle: Path
    model: str
    options: EdgeOptions
    images: Path | None = None
    prompts: Path | None = None
    max_new_tokens: int = 32
    dump: Path | None = None
    against: tuple[Path, EdgeOptions] | None = None
    gate: Path | None = None
    layers: bool = False


def prove(request: ParityRequest, progress: Progress) -> Findings:
    """Measure all of it.

    Raises:
        ContractError: an input that cannot be used.
    """
    with ExitStack() as stack:
        pictures = {} if request.dump else pictures_of(request.images)
        asked = read_prompts(request.prompts) if request.prompts else prompts_about(pictures) if pictures else []
        subject = open_subject(request, pictures, stack, progress)
        gate = _gate(request, subject)
        other = open_against(request, subject.bundle, stack)
        oracle = open_oracle(request.model, subject.bundle)
        stack.callback(oracle.close)
        names = subject.bundle.manifest.vision.output_names
        measured = measure(subject.samples, names, oracle, None if other is None else other.engine)
        layers = None
        if request.layers or gate.max_layer_l2 is not None:
            layers = _layers(subject, measured, oracle, other, progress)
        answers, others = _ask(request, asked, subject, other, progress)
        report = _report(request, subject, gate, measured, layers, answers)
        if other is not None:
            report = report.with_against(_against(_labels(subject, other)[1], measured, other.engine.precision, others))
        return _findings(report, subject, gate, measured, layers, other)


def open_subject(request: ParityRequest, pictures: dict[str, Any], stack: ExitStack, progress: Progress) -> Candidate:
    """The dump or the engine that is under test.

    Raises:
        ContractError: it cannot be opened.
    """
    if request.dump is not None:
        if request.images is not None or request.prompts is not None:
            raise InputError(
                "a dump brings its own pictures and holds no answers",
                field="--dump",
                remedy="Leave --images and --prompts out, and give --images to `dump` on the device.",
            )
        return open_dump(request.dump, request.bundle)
    return open_engine(
        request.bundle, request.options, pictures, stack, lambda bucket: progress(f"encoder, bucket {bucket}")
    )


def open_against(request: ParityRequest, bundle: Bundle, stack: ExitStack) -> Edge | None:
    """The other side, closed with the stack; None where none is asked for.

    Raises:
        ModelMismatchError: a bundle of another model.
    """
    if request.against is None:
        return None
    path, options = request.against
    other = stack.enter_context(open_edge(path, options))
    if other.bundle.manifest.model.model_hash != bundle.manifest.model.model_hash:
        raise ModelMismatchError(
            f"{path} is a bundle of another model than {bundle.path}",
            field="--against",
            expected=bundle.manifest.model.id,
            got=other.bundle.manifest.model.id,
        )
    return other


def open_oracle(model: str, bundle: Bundle) -> PytorchBackend:
    """PyTorch's encoder in fp32.

    Raises:
        CheckpointError: the checkpoint is missing.
        ModelMismatchError: it is not the one that the bundle was exported from.
    """
    return PytorchBackend(open_model_of(bundle, model))


def _gate(request: ParityRequest, subject: Candidate) -> Gate:
    wire = request.options.wire_dtype if subject.edge is not None else subject.precision
    if request.gate is None:
        return default_gate(subject.precision, wire)
    return read_gate(request.gate, subject.precision, wire, subject.bundle.manifest.vision.output_names)


def _layers(
    subject: Candidate, measured: Measured, oracle: PytorchBackend, other: Edge | None, progress: Progress
) -> LayerFindings:
    """The worst picture of each bucket; where the engine shows no layers, the graph that it was built from."""
    from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers

    source, vision = subject.layers(), subject.bundle.manifest.vision
    label = "" if source is not None else "the graph, since this engine shows no layers: "
    source = source or layers_of_graph(subject.bundle, subject.precision)
    cases = [kept[0][1] for grid, kept in measured.worst.items() if source.serves(grid)]
    against = None if other is None else layers_of(other)
    rows = measure_layers(
        cases, vision, source, TorchLayers(oracle, vision), against, lambda bucket: progress(f"layers, bucket {bucket}")
    )
    return LayerFindings(label + source.label, limits_of(subject.precision).layer_tolerance, tuple(rows))


def _ask(
    request: ParityRequest, asked: list[Prompt], subject: Candidate, other: Edge | None, progress: Progress
) -> tuple[Answers, Answers]:
    """Both sides' answers; none from a dump."""
    if subject.edge is None:
        return (), ()
    split, unsplit = open_both(subject.edge, request.model)
    tokens = request.max_new_tokens
    mine = compare_prompts(asked, split, unsplit, tokens, lambda name: progress(f"asking {name}"))
    if other is None:
        return tuple(mine), ()
    others = compare_prompts(
        asked, split.with_edge(other), unsplit, tokens, lambda name: progress(f"asking the other side {name}")
    )
    return tuple(mine), tuple(others)


def _report(
    request: ParityRequest,
    subject: Candidate,
    gate: Gate,
    measured: Measured,
    layers: LayerFindings | None,
    answers: Answers,
) -> ParityReport:
    names = subject.bundle.manifest.vision.output_names
    rows = encoder_rows(measured.measurements, {name: gate.of_output(name).min_cosine or 0.0 for name in names})
    return ParityReport(
        bundle=str(request.bundle),
        model=request.model,
        precision=subject.precision,
        backend=subject.backend,
        wire_dtype=request.options.wire_dtype,
        encoder=tuple(rows),
        prompts=answers,
        min_agreement=gate.answers.min_agreement,
        tools={name: importlib.metadata.version(name) for name in ("torch", "transformers", "qwen-vl-utils")},
        gate=tuple(judge(gate, rows, answers, None if layers is None else layers.rows)),
    )


def _findings(
    report: ParityReport,
    subject: Candidate,
    gate: Gate,
    measured: Measured,
    layers: LayerFindings | None,
    other: Edge | None,
) -> Findings:
    facts = {"bundle": bundle_facts(subject.bundle)}
    if other is not None and other.bundle.path != subject.bundle.path:
        facts["other bundle"] = bundle_facts(other.bundle)
    if subject.facts:
        facts["device"] = subject.facts
    facts["this machine"] = {"measured": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"} | environment()
    manifest = subject.bundle.manifest
    mine, its = _labels(subject, other)
    against = None if other is None else its
    return Findings(report, gate, measured, layers, mine, against, manifest.vision, manifest.preprocessing, facts)


def _labels(subject: Candidate, other: Edge | None) -> tuple[str, str]:
    """What the page calls both sides: no more than tells them apart."""
    if other is None:
        return subject.label, ""
    against = f"{other.engine.name} {other.engine.precision}"
    if other.bundle.path != subject.bundle.path:
        return f"{subject.bundle.path.name}: {subject.label}", f"{other.bundle.path.name}: {against}"
    return subject.label, against


def _against(label: str, measured: Measured, precision: str, answers: Answers) -> AgainstReport:
    rows = encoder_rows(measured.measurements, limits_of(precision).min_cosine, against=True)
    worst: dict[tuple[str, str], Between] = {}
    for item in measured.measurements:
        for name, found in (item.between or {}).items():
            key = (str(item.grid), name)
            worst[key] = Between(*key, found.worst(worst[key].distance) if key in worst else found)
    return AgainstReport(label, tuple(rows), tuple(worst.values()), answers)
