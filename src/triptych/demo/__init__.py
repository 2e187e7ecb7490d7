"""The demo model: a very small Qwen2-VL that knows coloured shapes and nothing else.

The trained weights travel inside the package, so a server can be tried, tested and
measured on a laptop without downloading anything.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
"""Folder of the packaged checkpoint, in the ordinary Hugging Face layout."""
