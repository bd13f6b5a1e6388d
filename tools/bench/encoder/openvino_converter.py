"""The encoder as OpenVINO's own converter takes it from PyTorch, without an exporter in between."""

from __future__ import annotations

from functools import partial
from typing import Any

from contract.checkpoint import open_checkpoint
from contract.errors import InputError
from tools.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting

FILE = "model.xml"


def peers() -> list[Peer]:
    """Float32, and bfloat16 where the CPU has it."""
    return [
        Peer("openvino's converter fp32", "fp32", partial(_load, "f32"), _convert),
        Peer("openvino's converter bf16", "bf16", partial(_load, "bf16"), _convert),
    ]


def _convert(setting: Setting) -> None:
    import openvino as ov
    import torch

    from edge_runtime.backends.pytorch import load_encoder

    encoder = load_encoder(open_checkpoint(str(setting.model)))
    places = torch.tensor([setting.grid.as_list()])

    class OnePicture(torch.nn.Module):
        """The encoder with its grid held constant, as the converter traces it."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output: Any = self.encoder(pixel_values, grid_thw=places)
            return output.pooler_output, *output.deepstack_features

    pixels = torch.zeros(setting.grid.patches, setting.vision.patch_values)
    model = ov.convert_model(OnePicture().eval(), example_input=(pixels,), input=list(pixels.shape))
    ov.save_model(model, setting.prepared / FILE, compress_to_fp16=False)


def _load(hint: str, setting: Setting) -> Candidate:
    from edge_runtime.backends.openvino import openvino_core

    core = openvino_core()
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("this CPU has no bfloat16", field="--candidates")
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if setting.threads:
        config["INFERENCE_NUM_THREADS"] = setting.threads
    request = core.compile_model(core.read_model(setting.prepared / FILE), "CPU", config).create_infer_request()

    def run(pixels: Pixels) -> Outputs:
        request.infer([pixels])
        return [request.get_output_tensor(index).data.copy() for index in range(len(request.model_outputs))]

    return Candidate(run)
