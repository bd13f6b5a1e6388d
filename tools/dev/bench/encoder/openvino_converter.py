"""The encoder as OpenVINO's own converter takes it from PyTorch, without an exporter in between."""

from __future__ import annotations

from functools import partial
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Candidate, Outputs, Peer, Pixels, Setting

FILE = "model.xml"


def peers() -> list[Peer]:
    """Float32, and bfloat16 where the CPU has it."""
    return [
        Peer("openvino's converter fp32", "fp32", partial(_load, "f32"), _convert, "openvino-converter"),
        Peer("openvino's converter bf16", "bf16", partial(_load, "bf16"), _convert, "openvino-converter"),
    ]


def _convert(setting: Setting) -> None:
    import openvino as ov
    import torch

    from qwen3vl_edge.contract.bundle.torch_encoder import load_torch_encoder

    encoder = load_torch_encoder(open_checkpoint(str(setting.model)))
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
    from qwen3vl_edge.edge_runtime.backends.openvino import cpu_settings, openvino_core

    core, settings = openvino_core(), cpu_settings(hint, setting.threads)
    request = core.compile_model(core.read_model(setting.prepared / FILE), "CPU", settings).create_infer_request()

    def run(pixels: Pixels) -> Outputs:
        request.infer([pixels])
        return [request.get_output_tensor(index).data.copy() for index in range(len(request.model_outputs))]

    return Candidate(run)
