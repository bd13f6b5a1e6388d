"""The encoder as transformers' own exporters write it, in the runtimes that they write for: the peers to measure by.

Needs the extra `bench`: `onnxscript` in the version that transformers.exporters asks for, `nncf`, `openvino`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting

CALIBRATION_PICTURES = 4


def peers() -> list[Peer]:
    """ONNX with and without its ONNX Runtime fusions, OpenVINO in float32 and bfloat16, quantized by NNCF in both."""

    def peer(name: str, dtype: str, load: Callable[[Setting], Candidate], kind: str) -> Peer:
        return Peer(f"upstream {name}", dtype, load, partial(_export, kind), f"upstream-{kind}")

    return [
        peer("onnx, onnxruntime fp32", "fp32", _onnx, "onnx"),
        peer("onnx fused, onnxruntime fp32", "fp32", _onnx, "onnx-fused"),
        peer("onnx nncf, onnxruntime int8", "int8", _onnx, "onnx-int8"),
        peer("openvino fp32", "fp32", partial(_openvino, "f32"), "openvino"),
        peer("openvino bf16", "bf16", partial(_openvino, "bf16"), "openvino"),
        peer("openvino nncf int8", "int8", partial(_openvino, "f32"), "openvino-int8"),
        peer("openvino-bf16 nncf int8", "int8", partial(_openvino, "bf16"), "openvino-int8"),
    ]


def _export(kind: str, setting: Setting) -> None:
    """Write the export of one kind into `setting.prepared`.

    Raises:
        InputError: the exporter's own dependencies are not installed.
    """
    import torch

    from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder

    inputs = {
        "hidden_states": torch.zeros(setting.grid.patches, setting.vision.patch_values),
        "grid_thw": torch.tensor([setting.grid.as_list()]),
    }
    try:
        exporter, config = _exporter(kind, setting)
    except ImportError as error:
        raise InputError(f"upstream's exporter does not run here: {error}", field="bench") from None
    encoder = load_torch_encoder(open_checkpoint(str(setting.model)))
    exporter.export(encoder, inputs, config=config).save_pretrained(setting.prepared)


def _exporter(kind: str, setting: Setting) -> tuple[Any, Any]:
    from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter

    if kind == "onnx":
        return OnnxExporter(), OnnxConfig()
    if kind == "onnx-fused":
        return OnnxExporter(), OnnxConfig(ort_fusions="cpu")
    if kind == "openvino":
        return OpenVINOExporter(), OpenVINOConfig()
    from transformers.exporters import NNCFOnnxQuantizer, NNCFOpenVINOQuantizer

    if kind == "onnx-int8":
        return OnnxExporter(), OnnxConfig(quantizer=NNCFOnnxQuantizer(calibration_dataset=_samples(setting)))
    return OpenVINOExporter(), OpenVINOConfig(quantizer=NNCFOpenVINOQuantizer(calibration_dataset=_samples(setting)))


def _samples(setting: Setting) -> list[dict[str, Any]]:
    """What NNCF calibrates on: pictures' worth of random patches, as everything else here is timed on."""
    import torch

    torch.manual_seed(0)
    shape = (setting.grid.patches, setting.vision.patch_values)
    return [{"hidden_states": torch.randn(shape), **_inputs(setting)} for _ in range(CALIBRATION_PICTURES)]


def _onnx(setting: Setting) -> Candidate:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = setting.threads
    settings.log_severity_level = 3
    return _loaded(setting, {"providers": ["CPUExecutionProvider"], "session_options": settings})


def _openvino(hint: str, setting: Setting) -> Candidate:
    from qwen3vl_edge.edge_runtime.backends.openvino import cpu_settings

    return _loaded(setting, {"config": cpu_settings(hint, setting.threads)})


def _loaded(setting: Setting, runner: dict[str, Any]) -> Candidate:
    """The saved export, run as upstream's documentation runs it."""
    import torch
    from transformers.exporters import ExportedModel

    exported = ExportedModel.from_pretrained(str(setting.prepared)).to(None, **runner)
    inputs = _inputs(setting)

    def run(pixels: Pixels) -> Outputs:
        with torch.inference_mode():
            output = exported(hidden_states=torch.from_numpy(pixels), **inputs)
        return [tensor.numpy() for tensor in (output.pooler_output, *output.deepstack_features)]

    return Candidate(run)


def _inputs(setting: Setting) -> dict[str, Any]:
    """What upstream's graph takes besides pixels: computed once, outside of the timing."""
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    spec, grid = setting.vision, setting.grid
    places = torch.tensor([grid.as_list()])
    side = int(spec.num_position_embeddings**0.5)
    indices, weights = get_vision_interpolation_indices_and_weights(
        places, side, mode="bilinear", align_corners=True, spatial_merge_size=spec.merge_size
    )
    return {
        "grid_thw": places,
        "cu_seqlens": (torch.arange(grid.t + 1) * grid.patches_per_frame).to(torch.int32),
        "position_ids": get_vision_position_ids(places, spec.merge_size),
        "interp_indices": indices,
        "interp_weights": weights,
    }
