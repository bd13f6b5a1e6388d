"""The time to first token of three deployments, each as the sum of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.wire.packing import PACKINGS, bytes_per_value
from qwen3vl_edge.edge_runtime.client.bandwidth import LADDER
from qwen3vl_edge.tools.plan.transfer import LinkSpeed, transfer_seconds

HEADER_BYTES = 2_500  # of a request of this project: names, shapes, sampling, HTTP
CHAT_BYTES = 600  # of a chat request beside its pictures
BASE64 = 4 / 3
SPLIT_TYPES = LADDER


@dataclass(frozen=True)
class Pictures:
    """The pictures of a request.

    Attributes:
        tokens: visual tokens of all pictures.
        width, levels: of the language model, and how many DeepStack levels its encoder gives.
        file_bytes: of all picture files, as JPEG or otherwise.
    """

    tokens: int
    width: int
    levels: int
    file_bytes: int


@dataclass(frozen=True)
class Speeds:
    """Seconds that the stages take, measured where they run.

    Attributes:
        device_encode: preprocessing and encoder on the device.
        server_encode: the same on an unsplit server.
        server_prefill: the language model's prompt, with queue and HTTP.
        device_prefill: the same on the device; None where the language model does not fit there.
        pack: for each packing, on the device and back on the server.
    """

    device_encode: float
    server_encode: float
    server_prefill: float
    device_prefill: float | None = None
    pack: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """One deployment.

    Attributes:
        stages: name to seconds, in order.
        sent_bytes: over the link.
    """

    name: str
    stages: dict[str, float]
    sent_bytes: int

    @property
    def seconds(self) -> float:
        """Time to first token."""
        return sum(self.stages.values())


def embedding_bytes(pictures: Pictures, wire_dtype: str) -> int:
    """Bytes of a split request, before zstd."""
    values = pictures.tokens * pictures.width * (1 + pictures.levels)
    return HEADER_BYTES + int(values * bytes_per_value(wire_dtype, pictures.width, 1 + pictures.levels))


def predict(pictures: Pictures, speeds: Speeds, link: LinkSpeed) -> list[Prediction]:
    """All deployments, the fastest first."""
    predictions = [_split(pictures, speeds, link, name) for name in SPLIT_TYPES]
    sent_bytes = CHAT_BYTES + int(pictures.file_bytes * BASE64)
    stages = {
        "link": transfer_seconds(sent_bytes, link),
        "encode": speeds.server_encode,
        "prefill": speeds.server_prefill,
    }
    predictions.append(Prediction("unsplit server", stages, sent_bytes))
    if speeds.device_prefill is not None:
        stages = {"encode": speeds.device_encode, "prefill": speeds.device_prefill}
        predictions.append(Prediction("all on the device", stages, 0))
    return sorted(predictions, key=lambda item: item.seconds)


def _split(pictures: Pictures, speeds: Speeds, link: LinkSpeed, wire_dtype: str) -> Prediction:
    sent_bytes = embedding_bytes(pictures, wire_dtype)
    stages = {
        "encode": speeds.device_encode,
        "pack": speeds.pack if wire_dtype in PACKINGS else 0.0,
        "link": transfer_seconds(sent_bytes, link),
        "prefill": speeds.server_prefill,
    }
    return Prediction(f"split {wire_dtype}", stages, sent_bytes)


def break_even_mbit(pictures: Pictures, speeds: Speeds, rtt_s: float, wire_dtype: str = "fp16") -> float | None:
    """The bandwidth above which the split is as fast as an unsplit server; None: on no link, 0: on any."""

    def ahead(mbit: float) -> bool:
        link = LinkSpeed(mbit, rtt_s)
        seconds = {item.name: item.seconds for item in predict(pictures, speeds, link)}
        return seconds[f"split {wire_dtype}"] <= seconds["unsplit server"]

    low, high = 0.1, 100_000.0
    if not ahead(high):
        return None
    if ahead(low):
        return 0.0
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if ahead(middle) else (middle, high)
    return high
