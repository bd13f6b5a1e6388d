"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "reference" / "qwen3vl-tiny"
SAMPLES = ROOT / "reference" / "samples"
