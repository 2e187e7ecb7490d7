"""Reads media as transformers takes them, without using any of the code that is checked."""

from __future__ import annotations

import io
import wave
from typing import Any, NamedTuple

from triptych.models.base import Checkpoint
from triptych.models.registry import family_of


class Frames(NamedTuple):
    """The frames of a video that the model sees."""

    values: Any
    """The pixels: uint8 [frames, height, width, 3]."""
    indices: list[int]
    """The frames' indices in the file."""
    of: int
    """The number of frames in the file."""
    fps: float


def frames(file: bytes, checkpoint: Checkpoint) -> Frames:
    """Reads the frames of an MP4 that the family's rule chooses by the checkpoint's settings. Needs PyAV and numpy."""
    import av
    import numpy as np

    with av.open(io.BytesIO(file), "r") as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    modality = family_of(checkpoint).videos
    assert modality is not None
    indices = list(modality.frame_indices(checkpoint, len(every), rate))
    return Frames(np.stack([every[index] for index in indices]), indices, len(every), rate)


def samples(file: bytes) -> tuple[Any, int]:
    """Reads a WAV of one channel of 16 bits: (float32 [samples] from -1 to 1, rate in Hz). Needs numpy."""
    import numpy as np

    with wave.open(io.BytesIO(file)) as reader:
        values = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
        return values.astype(np.float32) / 32_768, reader.getframerate()
