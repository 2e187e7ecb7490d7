"""The vision or audio part and its processor: everything that runs in threads, on plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.contracts.tensor import DTYPE_BYTES
from triptych.engines.encoder import families
from triptych.engines.encoder.families import Pixels
from triptych.engines.encoder.plan import width_of
from triptych.engines.encoder.weights import Weights
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of


class Encoder:
    """One checkpoint's vision part on one device. ``preprocess`` may run in several threads, ``encode`` in one."""

    def __init__(self, prepare: Callable[[Any], Pixels], run: families.Run, width: int, dtype: str) -> None:
        self._prepare = prepare
        self._run = run
        self.width = width
        """Values a token."""
        self.dtype = dtype
        """Of weights, arithmetic and embeddings."""

    def preprocess(self, decoded: Any) -> Pixels:
        """As the checkpoint's own processor does it, alone: its call costs 0.1 ms beside its arithmetic."""
        return self._prepare(decoded)

    def encode(self, batch: Sequence[Pixels]) -> list[Any]:
        """Embeddings [tokens, hidden] in this process's memory, C-contiguous, in the order of ``batch``."""
        import torch

        with torch.inference_mode():
            return [embedding.cpu().contiguous() for embedding in self._run(batch)]

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device can be used no more; out of memory is not of that kind."""
        import torch

        return isinstance(error, torch.AcceleratorError)


def load(checkpoint: Checkpoint, *, dtype: str, device: str, threads: int) -> Encoder:
    """Load the vision part of ``checkpoint``. Takes seconds (imports included); raises ConfigError.

    ``dtype`` and ``device`` may be ``auto``: the checkpoint's, and the first GPU where there is one. ``threads``
    is torch's number of them, for the whole process; 0 leaves it as it is.
    """
    build = families.loader(str(checkpoint.config.get("model_type")))
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
        prepare = _hearing(checkpoint) if "audio" in family_of(checkpoint).media else _seeing(checkpoint)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{checkpoint.path} cannot be loaded: {str(error).splitlines()[0]}") from error
    name = dtype if dtype != "auto" else stated_dtype(checkpoint)
    source = families.Source(config, Weights(Path(checkpoint.path)), getattr(torch, name), _device(torch, device))
    return Encoder(prepare, build(source), width, name)


def _seeing(checkpoint: Checkpoint) -> Callable[[Any], Pixels]:
    """The checkpoint's processors: of a PIL image, of uint8 [frames, height, width, 3]."""
    from PIL.Image import Image
    from transformers import AutoImageProcessor, AutoVideoProcessor

    pictures = AutoImageProcessor.from_pretrained(checkpoint.path, **_LOCAL)
    videos = None
    if "video" in family_of(checkpoint).media:
        videos = AutoVideoProcessor.from_pretrained(checkpoint.path, **_LOCAL)
    # The frames are chosen already.
    settings = {"do_sample_frames": False, "input_data_format": "channels_last", "return_tensors": "pt"}

    def prepare(decoded: Any) -> Pixels:
        if videos is None or isinstance(decoded, Image):
            return dict(pictures(images=[decoded], return_tensors="pt"))
        return dict(videos(videos=[decoded], **settings))

    return prepare


def _hearing(checkpoint: Checkpoint) -> Callable[[Any], Pixels]:
    """The checkpoint's feature extractor: of float32 [samples] at its own rate."""
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **_LOCAL)
    settings = {"sampling_rate": extractor.sampling_rate, "return_attention_mask": True, "return_tensors": "pt"}
    return lambda sound: dict(extractor(sound, **settings))


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def stated_dtype(checkpoint: Checkpoint) -> str:
    """The dtype in the checkpoint's config, float32 where it says none (transformers' own rule)."""
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
    """No progress bars and load reports on a worker's standard error; what is missing is raised instead."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
