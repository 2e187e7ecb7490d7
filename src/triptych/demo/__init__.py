"""Holds the demo models: very small models that know coloured shapes, or beeps, and nothing else.

The trained weights are part of the package, so that a server can be tried, tested and measured on a laptop without a
download.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

MODEL_DIR: Path = _HERE / "model"
"""Folder of the packaged Qwen2-VL, for pictures and videos, in the ordinary Hugging Face layout."""
AUDIO_MODEL_DIR: Path = _HERE / "audio_model"
"""Folder of the packaged Qwen2-Audio, for sounds."""

MODELS: dict[str, Path] = {"demo": MODEL_DIR, "demo-audio": AUDIO_MODEL_DIR}
"""The names that ``--model`` accepts in place of a folder."""
