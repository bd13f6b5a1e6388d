"""A device's dump: one `.npz` without pickles, with the inputs and outputs of the encoder and where they were computed.

`meta`                     uint8, JSON: format, bundle, backend, precision, environment, samples
`<i>/pixels`               uint8 [frames, H, W, 3], if bit-identical to `pixel_values`, else
`<i>/pixel_values`         float32 [t·h·w, channels·temporal·patch²]
`<i>/<output>`             [n, D] per encoder output, in the precision computed
`<i>/layer/<name>`         [rows, width], only with `--layers`

Members are stored, not compressed: numpy's `savez` form, whose sizes are known before anything is read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import BundleError, InputError
from qwen3vl_edge.contract.formats.atomic import new_file
from qwen3vl_edge.contract.formats.dataclass_json import from_json

FORMAT = "qwen3vl-edge dump"
VERSION = 1
META = "meta"
REMEDY = "Copy the dump again, or make it again with: qwen3vl-edge dump"


@dataclass(frozen=True)
class SampleRecord:
    """One picture at one bucket; its arrays are under its index."""

    bucket: str
    graph: str
    picture: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class DumpMeta:
    """Meta data of the arrays.

    Attributes:
        set_identity: `set_identity` in `tools/parity/dump/identity.py` of the encoder that the device ran.
        manifest_sha256: of the device's own manifest, engines included.
        environment: machine and library versions (`contract/machine/environment.py`).
    """

    model: str
    model_hash: str
    set_identity: str
    manifest_sha256: str
    backend: str
    precision: str
    outputs: tuple[str, ...]
    samples: tuple[SampleRecord, ...]
    environment: dict[str, str]
    format: str = FORMAT
    version: int = VERSION


class DumpWriter:
    """Arrays into an open archive, one at a time, so that a dump may be larger than memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, name: str, array: NDArray[Any]) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    def add_meta(self, meta: DumpMeta) -> None:
        self.add(META, np.frombuffer(json.dumps(asdict(meta)).encode(), dtype=np.uint8))


def write_dump(path: Path, fill: Any) -> None:
    """Write a dump, whole or not at all.

    Args:
        fill: called with a `DumpWriter`; adds the arrays, then the meta data.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with new_file(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            fill(DumpWriter(archive))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", field="--out") from None


class Dump:
    """An opened dump: arrays are read on access."""

    def __init__(self, path: Path, meta: DumpMeta, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.path = path
        self.meta = meta
        self._arrays = arrays

    def __iter__(self) -> Iterator[tuple[int, SampleRecord]]:
        return iter(enumerate(self.meta.samples))

    def has(self, index: int, name: str) -> bool:
        return f"{index}/{name}" in self._arrays

    def array(self, index: int, name: str) -> NDArray[Any]:
        """An array of a sample.

        Raises:
            InputError: the dump lacks it, or it cannot be read.
        """
        try:
            return self._arrays[f"{index}/{name}"]
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise _bad(self.path, f"lacks a readable {index}/{name} ({type(error).__name__})") from None


def read_dump(path: Path) -> Dump:
    """Open a dump and check every byte of it against its checksums; nothing is unpickled.

    Raises:
        InputError: missing, truncated, corrupt, compressed, or no dump of this version.
    """
    if not path.is_file():
        raise InputError(f"no such dump: {path}", field="--dump", remedy="Make one with: qwen3vl-edge dump")
    try:
        _check_members(path)
        arrays: Any = np.load(path, allow_pickle=False)
        document = json.loads(arrays[META].tobytes())
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for a corrupt file
        raise _bad(path, f"is truncated, corrupt or no dump ({type(error).__name__})") from None
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise _bad(path, f"is no {FORMAT} of version {VERSION}")
    try:
        meta = from_json(DumpMeta, document, "meta")
    except BundleError as error:
        raise _bad(path, f"has bad meta data ({error.message}: {error.field})") from None
    return Dump(path, meta, arrays)


def _check_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _bad(path, f"has a compressed member {member.filename}")
        damaged = archive.testzip()
    if damaged is not None:
        raise _bad(path, f"is corrupt at {damaged}")


def _bad(path: Path, reason: str) -> InputError:
    return InputError(f"dump {path} {reason}", field="--dump", remedy=REMEDY)
