"""One parity run from opened inputs to findings: encoder, layers, answers, judged by the gate."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.model_hash import rule_of
from qwen3vl_edge.contract.bundle.open import Bundle, open_model_of
from qwen3vl_edge.contract.errors import InputError, ModelMismatchError
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.edge_runtime.bundle_basis import open_basis
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend
from qwen3vl_edge.tools.parity.candidate import (
    Candidate,
    edge_candidate,
    open_backend_candidate,
    open_dump_candidate,
)
from qwen3vl_edge.tools.parity.dump.identity import bundle_facts
from qwen3vl_edge.tools.parity.encoder import EncoderRow, Measured, bound_of, encoder_rows, measure
from qwen3vl_edge.tools.parity.end_to_end import PromptResult, compare_prompts, open_both
from qwen3vl_edge.tools.parity.findings import Findings, LayerFindings
from qwen3vl_edge.tools.parity.gate import Gate, GateRow, default_gate, judge, judge_encoder, judge_wire
from qwen3vl_edge.tools.parity.gate_file import read_gate
from qwen3vl_edge.tools.parity.layers.drift import measure_layers
from qwen3vl_edge.tools.parity.layers.sources import layers_of, layers_of_graph
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import pictures_of
from qwen3vl_edge.tools.parity.prompts import Prompt, prompts_about, read_prompts
from qwen3vl_edge.tools.parity.reference import KeptReference
from qwen3vl_edge.tools.parity.report import AgainstReport, Between, ParityReport
from qwen3vl_edge.tools.parity.sets import (
    SetReport,
    Skipped,
    graphs_without_rows,
    opened_set,
    other_precisions,
)
from qwen3vl_edge.tools.parity.wire_forms import WireRow, measure_wire_forms

Progress = Callable[[str], None]
# Export and calibration have run every graph on it: one that does not load there is broken.
EXPORTS_BACKEND = "onnxruntime"
Answers = tuple[PromptResult, ...]


@dataclass(frozen=True)
class ParityRequest:
    """What to compare.

    Attributes:
        dump: a device's dump in place of a backend that runs here; it has no answers to compare.
        against: bundle and options of the other side.
        gate: thresholds that override the defaults.
        layers: measure the layers even where no limit needs them.
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


def run_parity(request: ParityRequest, progress: Progress) -> Findings:
    """Measure the encoder, the layers and the answers, and judge them by the gate.

    Raises:
        ContractError: an input that cannot be used.
    """
    with ExitStack() as stack:
        pictures = {} if request.dump else pictures_of(request.images)
        questions = read_prompts(request.prompts) if request.prompts else prompts_about(pictures) if pictures else []
        candidate = open_candidate(request, pictures, stack, progress)
        request = as_chosen(request, candidate)
        gate = _gate(request, candidate, candidate.precision)
        other = open_against(request, candidate.bundle, stack)
        reference = open_reference(request.model, candidate.bundle)
        stack.callback(reference.close)
        names = candidate.bundle.manifest.vision.output_names
        kept = KeptReference(reference)
        measured = measure(candidate.samples, names, kept, None if other is None else other.encoder)
        layers = None
        if request.layers or gate.max_layer_l2 is not None:
            layers = _layers(candidate, measured, reference, other, progress)
        sets, limits, skipped = _other_sets(request, candidate, pictures, kept, reference, progress)
        wire = _wire_forms(candidate, measured, skipped, progress)
        answers, others = _compare_answers(request, questions, candidate, other, progress)
        report = _report(request, candidate, gate, measured, layers, answers)
        report = report.with_others(sets, wire, skipped, (*limits, *judge_wire(wire)))
        if other is not None:
            report = report.with_against(_against(_labels(candidate, other)[1], measured, other.encoder, others))
        return _findings(report, candidate, gate, measured, layers, other)


def open_candidate(request: ParityRequest, pictures: dict[str, Any], stack: ExitStack, progress: Progress) -> Candidate:
    """The dump, or the backend that runs here.

    Raises:
        ContractError: it cannot be opened.
    """
    if request.dump is not None:
        if request.images is not None or request.prompts is not None:
            raise InputError(
                "a dump has its own pictures and no answers",
                field="--dump",
                remedy="Leave --images and --prompts out, and give --images to `dump` on the device.",
            )
        return open_dump_candidate(request.dump, request.bundle)
    return open_backend_candidate(
        request.bundle, request.options, pictures, stack, lambda bucket: progress(f"encoder, bucket {bucket}")
    )


def as_chosen(request: ParityRequest, candidate: Candidate) -> ParityRequest:
    """The request with the backend that the candidate has, where `--backend auto` left it open; any precision."""
    if candidate.edge is None:
        return request
    chosen, precision = candidate.edge.options, request.options.backend_options.precision
    return replace(
        request, options=replace(chosen, backend_options=replace(chosen.backend_options, precision=precision))
    )


def open_against(request: ParityRequest, bundle: Bundle, stack: ExitStack) -> Edge | None:
    """The other side, closed with the stack; None where the request has none.

    Raises:
        ModelMismatchError: a bundle of another model.
    """
    if request.against is None:
        return None
    path, options = request.against
    other = stack.enter_context(open_edge(path, options))
    mine, theirs = bundle.manifest.model, other.bundle.manifest.model
    if theirs.model_hash != mine.model_hash:
        one_rule = rule_of(theirs.model_hash) == rule_of(mine.model_hash)
        raise ModelMismatchError(
            f"{path} is a bundle of another model than {bundle.path}",
            field="--against",
            expected=mine.id,
            got=theirs.id if one_rule else f"a bundle of another release, of {theirs.id}",
            remedy=None if one_rule else "Export both with one release.",
        )
    return other


def open_reference(model: str, bundle: Bundle) -> PytorchBackend:
    """The reference: PyTorch's encoder in fp32.

    Raises:
        CheckpointError: the checkpoint is missing.
        ModelMismatchError: it is not the one that the bundle was exported from.
    """
    return PytorchBackend(open_model_of(bundle, model))


def _gate(request: ParityRequest, candidate: Candidate, precision: str) -> Gate:
    wire = request.options.wire_dtype
    if request.gate is None:
        return default_gate(precision, wire, candidate.backend)
    names = candidate.bundle.manifest.vision.output_names
    return read_gate(request.gate, precision, wire, names, candidate.backend)


def _other_sets(
    request: ParityRequest,
    candidate: Candidate,
    pictures: dict[str, Any],
    kept: KeptReference,
    reference: PytorchBackend,
    progress: Progress,
) -> tuple[list[SetReport], list[GateRow], Skipped]:
    """The other precisions' encoders, their limits, and the graphs that nothing here runs."""
    reports, limits = [], []
    precisions, skipped = other_precisions(candidate, request.options)
    for precision in precisions:
        with opened_set(request.bundle, request.options, precision, skipped) as edge:
            if edge is None:
                continue
            one = edge_candidate(edge, pictures, _of_set(progress, precision))
            gate = _gate(request, candidate, precision)
            names = candidate.bundle.manifest.vision.output_names
            try:
                measured = measure(one.samples, names, kept)
            except InputError as error:  # a graph that the backend does not load serves nothing here
                if one.backend == EXPORTS_BACKEND:
                    raise
                skipped[f"set {precision}"] = error.message
                continue
            rows = _rows(measured, gate, names)
            layers = None
            if gate.max_layer_l2 is not None:
                layers = _layers(one, measured, reference, None, progress).rows
            limits += judge_encoder(gate, rows, layers)
            reports.append(SetReport(precision, tuple(rows)))
            skipped |= _graphs_not_run(one, rows)
    return reports, limits, skipped


def _of_set(progress: Progress, precision: str) -> Progress:
    return lambda bucket: progress(f"encoder, {precision}, bucket {bucket}")


def _graphs_not_run(candidate: Candidate, rows: list[EncoderRow]) -> Skipped:
    reason = f"backend {candidate.backend} does not run it" if candidate.edge is not None else "it is not in the dump"
    return graphs_without_rows(candidate.bundle.manifest.set_for(candidate.precision), rows, reason)


def _wire_forms(candidate: Candidate, measured: Measured, skipped: Skipped, progress: Progress) -> tuple[WireRow, ...]:
    """Every wire form of the embeddings of one picture per grid; those that there are not are added to `skipped`."""
    manifest = candidate.bundle.manifest
    basis = None if manifest.basis is None else open_basis(candidate.bundle)
    rows, without = measure_wire_forms(
        measured.embeddings,
        manifest.vision.output_names,
        manifest.model.model_hash,
        basis,
        lambda form: progress(f"{form} on the wire"),
    )
    skipped |= without
    return tuple(rows)


def _rows(measured: Measured, gate: Gate, names: tuple[str, ...]) -> list[EncoderRow]:
    return encoder_rows(measured.measurements, {name: gate.of_output(name).bound for name in names})


def _layers(
    candidate: Candidate, measured: Measured, reference: PytorchBackend, other: Edge | None, progress: Progress
) -> LayerFindings:
    """The worst picture of each graph; of a backend that shows no layers, the graph that its engine was built from."""
    from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers

    source, vision = candidate.layers(), candidate.bundle.manifest.vision
    label = "" if source is not None else "the graph, since this engine shows no layers: "
    source = source or layers_of_graph(candidate.bundle, candidate.precision)
    cases = [pairs[0][1] for pairs in measured.worst.values() if source.serves(pairs[0][1])]
    against = None if other is None else layers_of(other)
    rows = measure_layers(
        cases,
        vision,
        source,
        TorchLayers(reference, vision),
        against,
        lambda bucket: progress(f"layers, bucket {bucket}"),
    )
    return LayerFindings(
        label + source.label, limits_of(candidate.precision, candidate.backend).layer_tolerance, tuple(rows)
    )


def _compare_answers(
    request: ParityRequest, questions: list[Prompt], candidate: Candidate, other: Edge | None, progress: Progress
) -> tuple[Answers, Answers]:
    """Both sides' answers; none from a dump."""
    if candidate.edge is None:
        return (), ()
    split, unsplit = open_both(candidate.edge, request.model)
    tokens = request.max_new_tokens
    answers = compare_prompts(questions, split, unsplit, tokens, lambda name: progress(f"asking {name}"))
    if other is None:
        return tuple(answers), ()
    others = compare_prompts(
        questions, split.with_edge(other), unsplit, tokens, lambda name: progress(f"asking the other side {name}")
    )
    return tuple(answers), tuple(others)


def _report(
    request: ParityRequest,
    candidate: Candidate,
    gate: Gate,
    measured: Measured,
    layers: LayerFindings | None,
    answers: Answers,
) -> ParityReport:
    rows = _rows(measured, gate, candidate.bundle.manifest.vision.output_names)
    return ParityReport(
        bundle=str(request.bundle),
        model=request.model,
        precision=candidate.precision,
        backend=candidate.backend,
        wire_dtype=request.options.wire_dtype,
        encoder=tuple(rows),
        prompts=answers,
        min_agreement=gate.answers.min_agreement,
        tools={name: importlib.metadata.version(name) for name in ("torch", "transformers", "qwen-vl-utils")},
        gate=tuple(judge(gate, rows, answers, None if layers is None else layers.rows)),
        skipped=_graphs_not_run(candidate, rows),
    )


def _findings(
    report: ParityReport,
    candidate: Candidate,
    gate: Gate,
    measured: Measured,
    layers: LayerFindings | None,
    other: Edge | None,
) -> Findings:
    facts = {"bundle": bundle_facts(candidate.bundle)}
    if other is not None and other.bundle.path != candidate.bundle.path:
        facts["other bundle"] = bundle_facts(other.bundle)
    if candidate.facts:
        facts["device"] = candidate.facts
    facts["this machine"] = {"measured": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"} | environment()
    manifest = candidate.bundle.manifest
    label, other_label = _labels(candidate, other)
    against = None if other is None else other_label
    return Findings(report, gate, measured, layers, label, against, manifest.vision, manifest.preprocessing, facts)


def _labels(candidate: Candidate, other: Edge | None) -> tuple[str, str]:
    """The names of both sides on the page, as short as they can be and differ."""
    if other is None:
        return candidate.label, ""
    against = f"{other.encoder.name} {other.encoder.precision}"
    if other.bundle.path != candidate.bundle.path:
        return f"{candidate.bundle.path.name}: {candidate.label}", f"{other.bundle.path.name}: {against}"
    return candidate.label, against


def _against(label: str, measured: Measured, encoder: EncoderBackend, answers: Answers) -> AgainstReport:
    rows = encoder_rows(measured.measurements, bound_of(encoder.precision, encoder.name), against=True)
    worst: dict[tuple[str, str, str], Between] = {}
    for item in measured.measurements:
        for name, apart in (item.between or {}).items():
            key = (str(item.grid), item.graph, name)
            worst[key] = Between(*key, apart.worst(worst[key].distance) if key in worst else apart)
    return AgainstReport(label, tuple(rows), tuple(worst.values()), answers)
