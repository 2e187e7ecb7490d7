"""Finds the family of a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.models import llama4, llava, llava_next, llava_next_video, qwen2_audio, qwen3_vl, qwen_vl
from triptych.models.base import Checkpoint, Json, ModelFamily

FAMILIES: tuple[ModelFamily, ...] = (
    qwen_vl.FAMILY,
    qwen_vl.FAMILY_2_5,
    qwen3_vl.FAMILY,
    llava.FAMILY,
    llava_next.FAMILY,
    llava_next_video.FAMILY,
    llama4.FAMILY,
    qwen2_audio.FAMILY,
)

TEXT_ONLY = ModelFamily(name="text", model_types=())
"""The family of every checkpoint that no other family claims, which is served for text only."""


def read_json(path: Path) -> Json:
    """Reads the JSON object in a checkpoint's file; empty if there is no such file. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict)
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a JSON object: {error}") from error


def load_checkpoint(path: str) -> Checkpoint:
    """Reads the descriptive files of the checkpoint at ``path``. Raises ConfigError naming what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"model folder {path} does not exist")
    config = read_json(folder / "config.json")
    if not config:
        raise ConfigError(f"{path} is no checkpoint: it has no config.json, or an empty one")
    preprocessor = read_json(folder / "preprocessor_config.json")
    if not preprocessor:  # transformers 5 saves all processors of a model in one file
        preprocessor = read_json(folder / "processor_config.json").get("image_processor") or {}
    generation = read_json(folder / "generation_config.json")
    added = _added_tokens(folder / "tokenizer.json")
    return Checkpoint(path, config, preprocessor, generation, _audio(folder), _video(folder), added)


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    """The parts of a tokenizer's file that are read. The file is large."""

    added_tokens: list[_AddedToken] = []


def _added_tokens(path: Path) -> dict[str, int]:
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_TokenizerFile)
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a tokenizer: {error}") from error
    return {token.content: token.id for token in read.added_tokens}


def _audio(folder: Path) -> Json:
    """Returns the settings of the feature extractor of sounds."""
    alone = read_json(folder / "preprocessor_config.json")
    if "feature_extractor_type" in alone:
        return alone
    return read_json(folder / "processor_config.json").get("feature_extractor") or {}


def _video(folder: Path) -> Json:
    """Returns the settings of the video processor, from the first file that has them, in transformers' order."""
    return (
        read_json(folder / "processor_config.json").get("video_processor")
        or read_json(folder / "video_preprocessor_config.json")
        or read_json(folder / "preprocessor_config.json")
    )


def family_of(checkpoint: Checkpoint) -> ModelFamily:
    """Returns the family of ``checkpoint`` by its config, never by its name."""
    return next((family for family in FAMILIES if family.claims(checkpoint)), TEXT_ONLY)
