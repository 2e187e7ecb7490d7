"""What the demo models are asked about: pictures, videos and sounds, as files and as transformers takes them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triptych.demo.audio import beeps, clips
from triptych.demo.pictures import shapes
from triptych.demo.seeds import EVALUATION_SEED_START
from triptych.demo.video import films, moves

if TYPE_CHECKING:
    from PIL import Image


class Sample(Protocol):
    """A medium with one question about it and the only right answer."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Exam:
    """Questions about one kind of medium."""

    model: str
    """Which demo model is asked (see ``triptych.demo.MODELS``)."""
    medium: str
    """As content parts name it: image, video or audio."""
    suffix: str
    """Of its files."""
    kinds: tuple[str, ...]
    """Of questions."""
    make: Callable[[int, str], Any]
    """(seed, kind) -> Sample."""
    file: Callable[[Any], bytes]
    """A sample's medium as a file."""
    argument: str
    """By which transformers' processor takes media."""
    read: Callable[[Path, bytes], Any]
    """(checkpoint, file) -> the medium as the model is to be shown it, the way a request's medium goes."""
    at_once: int
    """Questions that transformers answers in one batch."""

    def unseen(self, count: int, seed_start: int = EVALUATION_SEED_START) -> list[Any]:
        """``count`` samples of seeds that training never draws, kinds in turn."""
        if seed_start < EVALUATION_SEED_START:
            raise ValueError(f"seeds below {EVALUATION_SEED_START} belong to training")
        return [self.make(seed_start + i, self.kinds[i % len(self.kinds)]) for i in range(count)]

    def part(self, sample: Sample) -> dict[str, Any]:
        """The medium as a content part of OpenAI's API, by data URL."""
        data = base64.b64encode(self.file(sample)).decode()
        name = f"{self.medium}_url"
        return {"type": name, name: {"url": f"data:{self.media_type};base64,{data}"}}

    @property
    def media_type(self) -> str:
        return f"{self.medium}/{self.suffix}"


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _picture(checkpoint: Path, data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _frames(checkpoint: Path, data: bytes) -> Any:
    """uint8 [frames, height, width, 3], of those that the model sees."""
    from triptych.config.media import MediaLimits
    from triptych.contracts.media import Video
    from triptych.media.formats.video import decode_video, inspect_video
    from triptych.models.qwen_vl import frame_indices
    from triptych.models.registry import load_checkpoint

    limits = MediaLimits()
    info = inspect_video(data, limits, "video")
    seen = frame_indices(load_checkpoint(str(checkpoint)), info.num_frames, info.fps)
    medium = Video(content_hash="", format=info.format, data=data, frame_indices=seen)
    return decode_video(medium, limits)


def _samples(checkpoint: Path, data: bytes) -> Any:
    """float32 [samples] at the model's rate."""
    from triptych.config.media import MediaLimits
    from triptych.contracts.media import Sound
    from triptych.media.formats.audio import decode_audio
    from triptych.models.qwen2_audio import sample_rate
    from triptych.models.registry import load_checkpoint

    rate = sample_rate(load_checkpoint(str(checkpoint)))
    medium = Sound(content_hash="", format="WAV", data=data, decode_rate=rate)
    return decode_audio(medium, MediaLimits())


EXAMS: dict[str, Exam] = {
    "picture": Exam(
        model="demo",
        medium="image",
        suffix="png",
        kinds=shapes.KINDS,
        make=shapes.make_sample,
        file=lambda sample: png(sample.picture),
        argument="images",
        read=_picture,
        at_once=50,
    ),
    "video": Exam(
        model="demo",
        medium="video",
        suffix="mp4",
        kinds=moves.KINDS,
        make=moves.make_sample,
        file=lambda sample: films.encode(sample.film),
        argument="videos",
        read=_frames,
        at_once=50,
    ),
    "sound": Exam(
        model="demo-audio",
        medium="audio",
        suffix="wav",
        kinds=beeps.KINDS,
        make=beeps.make_sample,
        file=lambda sample: clips.wav(sample.sound),
        argument="audio",
        read=_samples,
        at_once=10,
    ),
}
