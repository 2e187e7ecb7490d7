"""Makes exams for the demo models: pictures, videos and sounds, as files and as transformers takes them."""

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
    """The name of the demo model that is asked (see ``triptych.demo.MODELS``)."""
    medium: str
    """The kind of medium, as content parts name it: image, video or audio."""
    suffix: str
    """The suffix of its files."""
    kinds: tuple[str, ...]
    """The kinds of questions."""
    make: Callable[[int, str], Any]
    """Makes a sample: (seed, kind) -> Sample."""
    file: Callable[[Any], bytes]
    """Returns a sample's medium as a file."""
    argument: str
    """The argument by which transformers' processor takes media."""
    read: Callable[[Path, bytes], Any]
    """Reads a medium as the model takes it, in the way of a request's medium: (checkpoint, file) -> medium."""
    at_once: int
    """The number of questions that transformers answers in one batch."""

    def unseen(self, count: int, seed_start: int = EVALUATION_SEED_START) -> list[Any]:
        """Returns ``count`` samples of seeds that training never draws, with the kinds in turn."""
        if seed_start < EVALUATION_SEED_START:
            raise ValueError(f"seeds below {EVALUATION_SEED_START} belong to training")
        return [self.make(seed_start + i, self.kinds[i % len(self.kinds)]) for i in range(count)]

    def part(self, sample: Sample) -> dict[str, Any]:
        """Returns the medium as a content part of OpenAI's API, with a data URL."""
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
    """Returns the frames that the model sees: uint8 [frames, height, width, 3]."""
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
    """Returns the sound at the model's rate: float32 [samples]."""
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
