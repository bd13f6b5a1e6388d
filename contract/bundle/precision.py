"""The precisions of a bundle's graphs, one row each: for export, calibration, engine builds and backends."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Precision:
    """One set of graphs.

    Attributes:
        rest: "fp32" or "fp16": the type of weights and products that are not quantized, and of the outputs.
        quantized: "int8" or "fp8" for products behind Q/DQ pairs, None where there are none.
        min_cosine: lowest accepted cosine of each encoder output to PyTorch in fp32, when parity is measured.
        max_relative_l2: most accepted ‖a - b‖ / ‖b‖ of the same.
        min_agreement: lowest accepted share of prompts whose greedy tokens equal the unsplit model's.
        max_kl: most accepted KL of the logits to the unsplit model's, in nats, at any step of any answer.
    """

    name: str
    rest: str
    quantized: str | None
    min_cosine: float
    max_relative_l2: float
    min_agreement: float
    max_kl: float

    def accepts(self, cosine: float, relative_l2: float) -> bool:
        """Whether an encoder output may be this far from its reference; NaN may not."""
        return cosine >= self.min_cosine and relative_l2 <= self.max_relative_l2


# fp32 differs in the order of sums alone, 1e-6 in a sound bundle. The others' relative L2 is what the cosine allows
# vectors of one length, sqrt(2 * (1 - cosine)): it catches lengths that differ. fp16 rounds weights and products to 11
# bits, layer after layer: 7e-4 at the 2B size with random weights; trained ones with outliers may need more.
#
# KL is a square: logits that an error e of the embeddings moves by c * e give c^2 * e^2 / 2. In sound bundles, of the
# reference checkpoint and of three seeds of random weights, the largest KL was at most 6 times the square of the
# relative L2: docs/guides/parity.md has the figures. Limits are 40 times the square of the most accepted relative L2,
# but for float16 of 1.6e-3, twice the 2B tower's: its most accepted is what the cosine allows, not its arithmetic.
PRECISIONS = {
    item.name: item
    for item in (
        Precision("fp32", "fp32", None, 0.999999, 1e-4, 1.0, 4e-7),
        Precision("fp16", "fp16", None, 0.9999, 1.4e-2, 0.99, 1e-4),
        # Written by `qwen3vl-edge calibrate`.
        Precision("int8", "fp32", "int8", 0.999, 4.5e-2, 0.98, 8e-2),
        Precision("int8-fp16", "fp16", "int8", 0.999, 4.5e-2, 0.98, 8e-2),
        Precision("fp8", "fp16", "fp8", 0.998, 6.4e-2, 0.98, 1.6e-1),
        Precision("fp8-fp32", "fp32", "fp8", 0.998, 6.4e-2, 0.98, 1.6e-1),
    )
}
# A backend, or a precision of the PyTorch backend, that is asked for by name because it computes more coarsely than any
# set that is not quantized: in bfloat16's 8 bits.
_BF16 = Precision("bf16", "fp32", None, 0.99, 1.4e-1, 0.98, 8e-1)
COARSER = {"openvino-bf16": _BF16, "bf16": _BF16}
EXPORTED = tuple(name for name, item in PRECISIONS.items() if item.quantized is None)
QUANTIZED_TYPES = ("int8", "fp8")
# ONNX Runtime optimizers to disable, by the type that products are quantized to. The first fuses a product and its
# bias into a Gemm, which cannot become an integer product; the second moves quantization before transposes, which
# do not accept float8; the third makes integer products of float8 too wherever the rest is float32.
ORT_DISABLED_OPTIMIZERS: dict[str | None, frozenset[str]] = {
    None: frozenset(),
    "int8": frozenset({"MatMulAddFusion"}),
    "fp8": frozenset({"MatMulAddFusion", "QDQPropagationTransformer", "QDQSelectorActionTransformer"}),
}


def as_computed(precision: str, backend: str) -> Precision:
    """A precision's row with the limits that it has on a backend: one rule for export, self-test, calibration, parity.

    Args:
        precision: of a set, or a key of COARSER.
    """
    if precision in COARSER:
        return COARSER[precision]
    row, coarse = PRECISIONS[precision], COARSER.get(backend)
    if coarse is None:
        return row
    return replace(
        row,
        min_cosine=min(row.min_cosine, coarse.min_cosine),
        max_relative_l2=max(row.max_relative_l2, coarse.max_relative_l2),
        min_agreement=min(row.min_agreement, coarse.min_agreement),
        max_kl=max(row.max_kl, coarse.max_kl),
    )


def quantized_name(kind: str, rest: str) -> str:
    """The set of products in `kind` and all else in `rest`."""
    return next(name for name, item in PRECISIONS.items() if (item.quantized, item.rest) == (kind, rest))
