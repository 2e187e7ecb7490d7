"""Reads sounds with FFmpeg: AAC files, and the sounds in MP4, QuickTime, WebM and Matroska files.

The interface is that of soundfile's files, so that limits, resampling and damage are treated alike for all formats.
FFmpeg is restricted to the container that the first bytes show, to a few codecs, and to the data in memory: it opens no
other file and no URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

from triptych.media.formats.iso_tracks import MAX_TRACKS, has_many_tracks

_PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le")
CODECS = {
    "aac": "AAC",
    "alac": "Apple Lossless",
    "flac": "FLAC",
    "mp3": "MP3",
    "opus": "Opus",
    "vorbis": "Vorbis",
    **dict.fromkeys(_PCM, "PCM"),
}
"""Supported codecs by FFmpeg's names. Decoders of rarer codecs, where its faults hide, are not used."""
CONTAINERS = {
    "AAC": "aac",
    "M4A": "mov",
    "MP4": "mov",
    "QuickTime": "mov",
    "WebM": "matroska",
    "Matroska": "matroska",
}
"""The files' formats, with FFmpeg's names of the containers."""
UNSTATED_SAMPLES = 1 << 62
_DECODERS = {"mp3float": "mp3", "libopus": "opus", "libvorbis": "vorbis"}
_FULL_SCALE = {"u8": 128.0, "s16": 32_768.0, "s32": 2_147_483_648.0, "flt": 1.0, "dbl": 1.0}
_SLACK_S = 0.5
_SLACK = 0.05
"""Share by which a file's stated length may exceed its content before the file counts as truncated."""


class NoSound(Exception):
    """Raised for a file that holds no sound that can be decoded. The text says why."""


class ShapeChanged(Exception):
    """Raised if the sample rate or the number of channels differs from that at the beginning."""


class AvSound:
    """An open sound. Its samples are read once, from the beginning."""

    frames = UNSTATED_SAMPLES
    """Samples of a channel, named as in soundfile. Containers state them only approximately."""

    def __init__(self, file: Any, stream: Any, numpy: Any) -> None:
        """Decodes the first frame, because the headers of some codecs state neither the final rate nor the channels.

        Raises ValueError if there is no frame.
        """
        self._numpy = numpy
        self._file, self._stream = file, stream
        self._blocks = self._decoded()
        self.samplerate = self.channels = 0
        self._left = next(self._blocks, numpy.empty((0, 1), numpy.float32))
        if not self.samplerate:
            raise ValueError("no frame could be decoded")
        self.stated_s = _stated_s(file, stream)

    def buffer_read_into(self, values: Any, dtype: str) -> int:
        """Fills ``values``, float32 [samples, channels], as far as there are samples; returns how many there were."""
        filled = 0
        while filled < len(values):
            if not len(self._left):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._left = block
            part = self._left[: len(values) - filled]
            values[filled : filled + len(part)] = part
            filled += len(part)
            self._left = self._left[len(part) :]
        return filled

    def _decoded(self) -> Iterator[Any]:
        """Yields float32 [samples, channels] of each frame. Raises ValueError for a file that ends too early."""
        samples = 0
        for packet in self._file.demux(self._stream):
            if packet.is_corrupt:
                raise ValueError("a packet is cut off")
            for frame in packet.decode():
                shape = frame.sample_rate, len(frame.layout.channels)
                if not self.samplerate:
                    self.samplerate, self.channels = shape
                if shape != (self.samplerate, self.channels):
                    raise ShapeChanged
                samples += frame.samples
                yield self._as_floats(frame)
        if self.samplerate:
            stated_s = _stated_s(self._file, self._stream)
            if stated_s - samples / self.samplerate > max(_SLACK_S, _SLACK * stated_s):
                raise ValueError("the file ends before its sound does")

    def _as_floats(self, frame: Any) -> Any:
        np = self._numpy
        values = frame.to_ndarray()
        by_sample = values.T if frame.format.is_planar else values.reshape(-1, self.channels)
        kind = frame.format.name.removesuffix("p")
        floats = by_sample.astype(np.float32)
        if kind == "u8":
            floats -= _FULL_SCALE[kind]
        floats /= _FULL_SCALE[kind]
        return floats


@contextmanager
def opened(data: bytes, format: str, av: Any, numpy: Any) -> Iterator[AvSound]:
    """Opens the first sound of ``data``, a file of a ``format`` of ``CONTAINERS``.

    Raises NoSound and, here and in the block, ShapeChanged and ValueError for damage.
    """
    container = CONTAINERS[format]
    if container == "mov" and has_many_tracks(data):
        raise NoSound(f"the file has more than {MAX_TRACKS} tracks, which is the most that are read")
    options = {
        "codec_whitelist": ",".join((*CODECS, *_DECODERS)),
        "protocol_whitelist": "none",
        "max_streams": str(MAX_TRACKS),
    }
    try:
        with av.open(BytesIO(data), format=container, options=options, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise NoSound("the file holds no sound (a silent video?)")
            stream = file.streams.audio[0]
            _check_codec(stream)
            stream.codec_context.thread_count = 1  # media are decoded side by side already
            yield AvSound(file, stream, numpy)
    except (av.FFmpegError, EOFError, RuntimeError, ArithmeticError, KeyError) as error:
        raise ValueError("FFmpeg cannot read it") from error


def _check_codec(stream: Any) -> None:
    """Checks the codec. FFmpeg would open no other codec anyway, but its error would not be clear."""
    name = stream.codec_context.name if stream.codec_context is not None else "unknown"
    if _DECODERS.get(name, name) not in CODECS:
        raise NoSound(
            f"the sound's codec is not served ({name:.16}); send one of {', '.join(dict.fromkeys(CODECS.values()))}"
        )


def _stated_s(file: Any, stream: Any) -> float:
    """Returns the seconds of sound that the header states; 0 if it states none, or not for the sound alone."""
    if file.format.name == "aac":  # a guess from the first frames
        return 0.0
    with suppress(TypeError, ValueError):
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
    return (file.duration or 0) / 1e6 if len(file.streams) == 1 else 0.0
