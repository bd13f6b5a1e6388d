"""Open a bundle: read the manifest, and check every file that it records by size and sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME, FileRecord, GraphRecord, Manifest, parse_manifest
from qwen3vl_edge.contract.bundle.model_hash import rule_of
from qwen3vl_edge.contract.bundle.processor_files import image_normalization, video_normalization
from qwen3vl_edge.contract.errors import BundleError, CheckpointError, ModelMismatchError
from qwen3vl_edge.contract.pixels.policy import PixelPolicy, qwen_vl_utils_policy

PROCESSOR_FOLDER = "processor"
_EARLIER_LIMITS = "vision_defaults.json"  # before schema 6: keys of parts that did not have them
COPY_AGAIN = "Copy the bundle again, or export it again."


@dataclass(frozen=True)
class Bundle:
    """A bundle folder and its manifest, as read when the bundle was opened."""

    path: Path
    manifest: Manifest

    @property
    def processor_path(self) -> Path:
        """Folder that `AutoProcessor.from_pretrained` and `AutoTokenizer.from_pretrained` read."""
        return self.path / PROCESSOR_FOLDER

    @property
    def pixels(self) -> PixelPolicy:
        """Between which limits pictures and clips are resized: as exported, or as older bundles always were.

        Raises:
            BundleError: an older bundle's limits cannot be read.
        """
        return self.manifest.pixels or _earlier_policy(self.manifest, self.processor_path)

    def graph_path(self, graph: GraphRecord) -> Path:
        return self.path / graph.path


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open and check a bundle without a lock; a manifest that is replaced meanwhile is read and checked again.

    Args:
        path: the bundle folder.
        verify: also hash every file; sizes are always checked.

    Raises:
        BundleError: no bundle there, an unknown schema, a file that is missing, truncated or altered, or a processor
            that normalizes pixels otherwise than the graphs.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    while True:
        try:
            _check_files(manifest, path, folder, verify=verify)
            _check_normalization(manifest, folder / PROCESSOR_FOLDER)
        except BundleError:
            replaced_by = read_manifest(folder)
            if replaced_by == manifest:
                raise
            manifest = replaced_by
        else:
            return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read and parse a bundle's manifest without checking the files that it records.

    Raises:
        BundleError: no bundle there, or a manifest that cannot be read or is not valid.
    """
    file = folder / MANIFEST_NAME
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"no bundle at {folder}",
            field="bundle",
            expected=f"a folder with {MANIFEST_NAME}",
            remedy="Make one with: qwen3vl-edge export MODEL --buckets 448x448 --out BUNDLE",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read ({type(error).__name__})", field="bundle") from None
    return parse_manifest(text, str(file))


def _check_files(manifest: Manifest, path: str | Path, folder: Path, *, verify: bool) -> None:
    rebuild = _rebuild_commands(manifest, path)
    for record in manifest.files:
        check_file(folder, record, verify=verify, remedy=rebuild.get(record.path, COPY_AGAIN))


def _check_normalization(manifest: Manifest, folder: Path) -> None:
    """Compare mean, std and rescaling of the processor with the manifest's, by which graphs and the lean path go."""
    recorded = manifest.preprocessing
    try:
        image, video = image_normalization(folder), video_normalization(folder)
    except CheckpointError as error:
        raise BundleError(error.message, field=error.field, remedy=COPY_AGAIN) from None
    compared: list[tuple[str, object, object]] = []
    if image is not None:
        compared += [
            ("image mean", recorded.image_mean, image.mean),
            ("image std", recorded.image_std, image.std),
            ("rescale_factor", recorded.rescale_factor, image.rescale_factor),
        ]
    if video is not None and recorded.video_mean:  # older manifests do not record it
        compared += [("video mean", recorded.video_mean, video.mean), ("video std", recorded.video_std, video.std)]
    for name, expected, got in compared:
        if expected != got:
            raise BundleError(
                f"the {name} of the processor in {folder} is not the manifest's",
                field=name.replace(" ", "_"),
                expected=expected,
                got=got,
                remedy=COPY_AGAIN,
            )


def open_model_of(bundle: Bundle, model: str, *, patterns: Iterable[str] | None = None) -> Checkpoint:
    """Open the checkpoint that a bundle was exported from; reject any other.

    Args:
        model: folder or hub id, as `open_checkpoint` takes it, from the option `--model`.
        patterns: as `open_checkpoint` takes them.

    Raises:
        CheckpointError: the checkpoint is missing.
        ModelMismatchError: its model hash differs from the bundle's.
    """
    checkpoint = open_checkpoint(model, patterns=patterns)
    if checkpoint.model_hash != bundle.manifest.model.model_hash:
        recorded = bundle.manifest.model
        if rule_of(recorded.model_hash) != rule_of(checkpoint.model_hash):
            raise ModelMismatchError(
                f"the bundle was exported by another release, whose hash of the model {recorded.id} cannot be compared",
                field="--model",
                remedy=f"Export the bundle again: qwen3vl-edge export {model} --out {bundle.path}",
            )
        raise ModelMismatchError(
            f"{model} is not the model that the bundle was exported from",
            field="--model",
            expected=f"{recorded.id} ({recorded.model_type})",
            got=f"{checkpoint.name} ({checkpoint.model_type.name})",
            remedy="Give the checkpoint of the bundle, or export it again.",
        )
    return checkpoint


def _earlier_policy(manifest: Manifest, processor: Path) -> PixelPolicy:
    """qwen-vl-utils' defaults, and the limits that a file of the checkpoint set in their place."""
    policy = qwen_vl_utils_policy(manifest.vision.geometry.factor, manifest.vision.temporal_patch_size)
    file = processor / _EARLIER_LIMITS
    if not file.is_file():
        return policy
    try:
        limits = json.loads(file.read_text(encoding="utf-8"))
        return replace(
            policy,
            image=replace(policy.image, **limits.get("image", {})),
            video=replace(policy.video, **limits.get("video", {})),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{file} cannot be read ({type(error).__name__})", field=_EARLIER_LIMITS) from None


def record_file(folder: Path, file: Path) -> FileRecord:
    """The record of a file inside a bundle folder."""
    return FileRecord(file.relative_to(folder).as_posix(), file.stat().st_size, sha256_of(file))


def _rebuild_commands(manifest: Manifest, path: str | Path) -> dict[str, str]:
    """The remedy for each damaged file of an engine: engines are built again without a new export."""
    return {
        file: f"Copy it again, or rebuild it: qwen3vl-edge build {path} --target {engine.target} "
        f"--precision {engine.precision}"
        for engine in manifest.engines
        for file in engine.files
    }


def check_file(folder: Path, record: FileRecord, *, verify: bool, remedy: str = COPY_AGAIN) -> None:
    """Compare a file with its record.

    Raises:
        BundleError: the file is missing, or its size or (with `verify`) its hash differs.
    """
    file = folder / record.path
    if not file.is_file():
        raise BundleError(f"bundle file {file} is missing", field=record.path, remedy=remedy)
    size = file.stat().st_size
    if size != record.bytes:
        raise BundleError(
            f"bundle file {file} is {'truncated' if size < record.bytes else 'altered'}",
            field=record.path,
            expected=f"{record.bytes} bytes",
            got=f"{size} bytes",
            remedy=remedy,
        )
    if verify and (actual := sha256_of(file)) != record.sha256:
        raise BundleError(
            f"bundle file {file} is altered",
            field=record.path,
            expected=f"sha256 {record.sha256[:12]}…",
            got=f"{actual[:12]}…",
            remedy=remedy,
        )


def sha256_of(file: Path) -> str:
    """sha256 hex of a file, streamed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _stream(file)


def _stream(file: Path) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
