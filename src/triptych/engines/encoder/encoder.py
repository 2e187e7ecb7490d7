"""Runs the vision or audio part of a checkpoint and its processor. Everything here runs in threads, on plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.contracts.media import DecodableMedium, Picture, Sound, Video
from triptych.contracts.tensor import DTYPE_BYTES
from triptych.engines.encoder.plan import width_of
from triptych.engines.encoder.towers.base import Pixels, Run, Source
from triptych.engines.encoder.towers.registry import builder
from triptych.engines.encoder.weights import Weights
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of

Prepare = Mapping[type[DecodableMedium], Callable[[Any], Pixels]]
"""The checkpoint's own processor of each type of medium that its model takes."""


class Encoder:
    """The vision or audio part of one checkpoint, on one device.

    ``preprocess`` may run in several threads, ``encode`` in one.
    """

    def __init__(self, prepare: Prepare, run: Run, width: int, dtype: str) -> None:
        self._prepare = prepare
        self._run = run
        self.width = width
        """Number of values a token."""
        self.dtype = dtype
        """The dtype of weights, arithmetic and embeddings."""

    def preprocess(self, medium: DecodableMedium, decoded: Any) -> Pixels:
        """Preprocesses a medium by the checkpoint's own processor. A call costs 0.1 ms beside the arithmetic."""
        return self._prepare[type(medium)](decoded)

    def encode(self, batch: Sequence[Pixels]) -> list[Any]:
        """Returns embeddings [tokens, hidden] in this process's memory, C-contiguous, in the order of ``batch``."""
        import torch

        with torch.inference_mode():
            return [embedding.cpu().contiguous() for embedding in self._run(batch)]

    def is_fatal(self, error: BaseException) -> bool:
        """Tells whether the device cannot be used any more. Running out of memory is not such an error."""
        import torch

        return isinstance(error, torch.AcceleratorError)


def load(checkpoint: Checkpoint, *, dtype: str, device: str, threads: int) -> Encoder:
    """Loads the vision part of ``checkpoint``. Takes seconds (imports included); raises ConfigError.

    ``auto`` as ``dtype`` means the checkpoint's, and as ``device`` the first GPU if there is one. ``threads`` sets the
    number of torch's threads, for the whole process; 0 leaves it unchanged.
    """
    build = builder(str(checkpoint.config.get("model_type")))
    width = width_of(family_of(checkpoint), checkpoint)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the encoder engine needs torch and transformers ({error}); `make install` installs them, "
            "or this package's extra `encoder`"
        ) from error
    _be_quiet(transformers)
    if threads:
        torch.set_num_threads(threads)
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.path, **_LOCAL)
        prepare = _processors(checkpoint)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{checkpoint.path} cannot be loaded: {str(error).splitlines()[0]}") from error
    name = dtype if dtype != "auto" else stated_dtype(checkpoint)
    source = Source(config, Weights(Path(checkpoint.path)), getattr(torch, name), _device(torch, device))
    return Encoder(prepare, build(source), width, name)


def _processors(checkpoint: Checkpoint) -> Prepare:
    family = family_of(checkpoint)
    make: dict[type[DecodableMedium], Callable[[Checkpoint], Callable[[Any], Pixels]]] = {}
    if family.pictures is not None:
        make[Picture] = _picture_processor
    if family.videos is not None:
        make[Video] = _video_processor
    if family.sounds is not None:
        make[Sound] = _sound_processor
    return {medium: processor(checkpoint) for medium, processor in make.items()}


def _picture_processor(checkpoint: Checkpoint) -> Callable[[Any], Pixels]:
    """Returns the processor of a PIL image."""
    from transformers import AutoImageProcessor

    pictures = AutoImageProcessor.from_pretrained(checkpoint.path, **_LOCAL)
    return lambda picture: dict(pictures(images=[picture], return_tensors="pt"))


def _video_processor(checkpoint: Checkpoint) -> Callable[[Any], Pixels]:
    """Returns the processor of uint8 [frames, height, width, 3]; the frames are chosen already."""
    from transformers import AutoVideoProcessor

    videos = AutoVideoProcessor.from_pretrained(checkpoint.path, **_LOCAL)
    settings = {"do_sample_frames": False, "input_data_format": "channels_last", "return_tensors": "pt"}
    return lambda frames: dict(videos(videos=[frames], **settings))


def _sound_processor(checkpoint: Checkpoint) -> Callable[[Any], Pixels]:
    """Returns the processor of float32 [samples] at the extractor's own rate."""
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **_LOCAL)
    settings = {"sampling_rate": extractor.sampling_rate, "return_attention_mask": True, "return_tensors": "pt"}
    return lambda sound: dict(extractor(sound, **settings))


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def stated_dtype(checkpoint: Checkpoint) -> str:
    """Returns the dtype in the checkpoint's config; float32 if there is none (transformers' own rule)."""
    config = checkpoint.text_config
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ConfigError(f"the checkpoint's dtype {name!r} is not served; choose one by --dtype")
    return name


def _device(torch: Any, name: str) -> Any:
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if has_gpu else 0):
        raise ConfigError(f"there is no device {name} here; choose another by --device")
    return device


def _be_quiet(transformers: Any) -> None:
    """Turns off progress bars and load reports on standard error. Missing tensors are raised instead."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
