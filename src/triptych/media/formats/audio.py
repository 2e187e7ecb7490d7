"""Finds the format and the length of a sound, and decodes it to the samples that the model gets.

libsndfile reads the files, and FFmpeg those that libsndfile does not know. Both read in blocks, so that the limit holds
also for a file that has more samples than it states. Resampling is soxr's high quality, which is librosa's default and
therefore that of the examples that models are published with.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END, SEEK_SET, BytesIO
from typing import Any, NamedTuple

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.contracts.media import Sound
from triptych.media.errors import DAMAGED, TOO_LARGE, TOO_SMALL, UNSUPPORTED, damaged, problem, too_many_bytes
from triptych.media.formats import av_sound, video, wav
from triptych.media.formats.sound_parts import MAX_PARTS, CutOff, Part, TooManyParts, behind_tags, parts_of
from triptych.media.formats.wav import with_sizes

SUPPORTED_SOUNDS = ("WAV", "FLAC", "MP3", "OGG", *av_sound.CONTAINERS)
RATES_HZ = (1_000, 192_000)
"""Lowest and highest sample rate."""
MAX_CHANNELS = 8
MAX_AMPLITUDE = 65_536.0
"""Limit of a sample. Files of floats may exceed 1, or hold unscaled integers; larger values would overflow in the
model's features."""
VALUES_PER_S = 192_000
"""Samples of all channels that a second of the longest sound may have (four channels of 48 kHz). Bounds the time that
decoding takes."""
BLOCK_VALUES = 1 << 18
"""Samples of all channels that are decoded in one go (1 MiB)."""
SAMPLE_BYTES = 4

_SUPPORTED = (
    (re.compile(rb"RIFF.{4}WAVE", re.DOTALL), "WAV"),
    (re.compile(rb"fLaC"), "FLAC"),
    (re.compile(rb"OggS"), "OGG"),
    # The first frame's header: eleven bits of synchronisation, a version, layer III; of AAC twelve bits, and no layer.
    (re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"), "MP3"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "AAC"),
    (re.compile(rb".{4}ftypM4[AB] ", re.DOTALL), "M4A"),
    *((magic, name) for magic, name, container in video.MAGIC if container in av_sound.CONTAINERS.values()),
)
# Files that people do send, so that the refusal can name them.
_UNSUPPORTED = (
    (re.compile(rb"FORM.{4}AIF", re.DOTALL), "AIFF"),
    (re.compile(rb"#!AMR"), "AMR"),
    (re.compile(rb"RF64"), "RF64"),
    (re.compile(rb"\x30\x26\xb2\x75"), "WMA"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF.{4}WEBP|.{4}ftyp", re.DOTALL), "an image"),
)
_READER_NAMES = {"WAV": ("WAV", "WAVEX"), "FLAC": ("FLAC",), "OGG": ("OGG",), "MP3": ("MP3",)}
_UNSTATED_SAMPLES = 1 << 36
"""libsndfile reports at least so many for a FLAC file that states no length; no FLAC header can state so many."""

_MAGIC_BYTES = 256
_STATED_SLACK_S = 1.0
"""Time by which a container's stated duration, which is approximate, may exceed the limit."""
_FAR = 1 << 40
"""A position, in bytes, beyond the end of every file."""


class AudioInfo(NamedTuple):
    """Describes a sound that passed every check that needs no samples."""

    format: str
    """A member of ``SUPPORTED_SOUNDS``."""
    sample_rate: int
    """The file's sample rate in Hz."""
    channels: int
    num_samples: int
    """Samples of one channel, at the file's rate."""


def inspect_audio(data: bytes, limits: MediaLimits, item: str) -> AudioInfo:
    """Finds format and length of a sound and checks them against ``limits``. Blocks: run it in a thread.

    It takes some 0.1 ms if the header states the length. MP3 files, and those that FFmpeg reads, state at best an
    estimate, so their samples are counted by decoding them: about 0.3 ms a second of sound. Raises UnsupportedMedia
    (415) for other files, BadRequest (400) for damage or a sound of no samples, PayloadTooLarge (413) over a limit,
    TriptychError (500) without the libraries.
    """
    format, data = _read(data, limits, item)
    samples, shape = 0, (0, 0)
    for part in _parts(data, format, item):
        with _opened(part, format, limits, item) as file:
            shape = _same_shape(shape, file, item)
            stated = _stated_samples(file, format)
            if stated is None:
                blocks = _blocks(file, samples, limits, item)
                stated = _heard(sum(len(block) for block in blocks), None, part, item)
            samples += stated
            _check_length(samples, file, limits, item)
    _check_not_empty(samples, item)
    return AudioInfo(format, *shape, samples)


def decode_audio(medium: Sound, limits: MediaLimits, item: str = "audio") -> Any:
    """Decodes ``medium`` to float32 [samples], channels averaged, at ``medium.decode_rate`` (0: the file's own).

    The length is ``resampled_length`` of the file's. Blocks for less than 1 ms a second of sound: run it in a thread.
    Checks the bytes by itself and relies on nothing that the medium states; decoding stops at the limit. Needs memory
    for a block and for twice the result. Raises as ``inspect_audio`` does, also for damage anywhere in the file, and
    nothing else for any data.
    """
    np = _library("numpy")
    format, data = _read(bytes(medium.data), limits, item)
    samples, shape, made = 0, (0, 0), []
    resample = None
    for part in _parts(data, format, item):
        with _opened(part, format, limits, item) as file:
            shape = _same_shape(shape, file, item)
            stated = _stated_samples(file, format)
            _check_length(samples + (stated or 0), file, limits, item)
            resample = resample or _resampler(file.samplerate, medium.decode_rate or file.samplerate, item)
            count = 0
            for block in _blocks(file, samples, limits, item):
                count += len(block)
                made.append(resample(_mono(block, item), False))
            samples += _heard(count, stated, part, item)
    _check_not_empty(samples, item)
    assert resample is not None
    made.append(resample(np.empty(0, np.float32), True))
    length = resampled_length(samples, shape[0], medium.decode_rate or shape[0])
    decoded = np.zeros(length, np.float32)  # soxr's own length is at most a sample off
    joined = np.concatenate(made)[:length]
    decoded[: len(joined)] = joined
    return decoded


def resampled_length(samples: int, rate: int, new_rate: int) -> int:
    """Returns how many samples at ``new_rate`` Hz come of ``samples`` at ``rate`` Hz, rounded up as by librosa."""
    return -(-samples * new_rate // rate)


def sound_bytes(sound: Any) -> int:
    """Returns the bytes of a decoded sound."""
    return int(sound.nbytes)


def _read(data: bytes, limits: MediaLimits, item: str) -> tuple[str, bytes]:
    """Returns (format, the file as its reader takes it), by the first bytes.

    The type that the sender states is not used.
    """
    if len(data) > limits.media_max_bytes:
        raise too_many_bytes(item, limits.media_max_bytes)
    if not data:
        raise problem(BadRequest, item, DAMAGED, "the sound is empty (0 bytes)")
    format = _format(data)
    if format is None and data[:3] == b"ID3":  # which taggers put before everything; MP3 files keep it
        behind = data[behind_tags(data, 0) :]
        format = _format(behind) or "MP3"
        data = data if format == "MP3" else behind
    if format is None:
        raise _unsupported(data, item)
    try:
        return format, with_sizes(data) if format == "WAV" else data
    except wav.CutOff:
        raise damaged(item, "sound") from None


def _format(data: bytes) -> str | None:
    head = data[:_MAGIC_BYTES]
    return next((name for magic, name in _SUPPORTED if magic.match(head)), None)


def _unsupported(data: bytes, item: str) -> UnsupportedMedia:
    head = data[:_MAGIC_BYTES]
    found = next((name for magic, name in _UNSUPPORTED if magic.match(head)), None)
    what = "the data is not a sound" if found is None else f"the file type is not supported: {found}"
    return problem(UnsupportedMedia, item, UNSUPPORTED, f"{what}; send one of {', '.join(SUPPORTED_SOUNDS)}")


class _Unending(BytesIO):
    """A file that seems to have no end until it is read to its end; far behind the end it holds zeros."""

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        return super().seek(offset + _FAR) if whence == SEEK_END else super().seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        if self.tell() < _FAR // 2:
            return super().readinto(buffer)
        buffer[:] = bytes(len(buffer))
        return len(buffer)


@contextmanager
def _opened(part: Part, format: str, limits: MediaLimits, item: str) -> Iterator[Any]:
    """Opens the reader of ``part``. Turns errors of libraries, within the block too, into BadRequest."""
    opened = _opened_by_ffmpeg if format in av_sound.CONTAINERS else _opened_by_libsndfile
    with opened(part, format, limits, item) as file:
        _check_shape(file.samplerate, file.channels, item)
        yield file


@contextmanager
def _opened_by_libsndfile(part: Part, format: str, limits: MediaLimits, item: str) -> Iterator[Any]:
    soundfile = _library("soundfile")
    # Of a seekable file each read is followed by a seek to where it ended, which fails in a FLAC without a length.
    reader = type("Reader", (soundfile.SoundFile,), {"seekable": lambda self: False})
    try:
        with reader((BytesIO if part.states_length else _Unending)(part.data)) as file:
            if file.format not in _READER_NAMES[format]:
                raise damaged(item, "sound")
            yield file
    except (soundfile.SoundFileError, ValueError, MemoryError):
        raise damaged(item, "sound") from None


@contextmanager
def _opened_by_ffmpeg(part: Part, format: str, limits: MediaLimits, item: str) -> Iterator[Any]:
    try:
        with av_sound.opened(part.data, format, _library("av"), _library("numpy")) as file:
            _check_length(int((file.stated_s - _STATED_SLACK_S) * file.samplerate), file, limits, item)
            yield file
    except av_sound.NoSound as error:
        raise problem(UnsupportedMedia, item, UNSUPPORTED, str(error)) from None
    except av_sound.ShapeChanged:
        raise _shape_changed(item) from None
    except (ValueError, MemoryError):
        raise damaged(item, "sound") from None


def _parts(data: bytes, format: str, item: str) -> Iterator[Part]:
    try:
        yield from parts_of(data, format)
    except CutOff:
        raise damaged(item, "sound") from None
    except TooManyParts:
        reason = f"the sound comes in more than {MAX_PARTS:,} parts, which is the most that are read"
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason) from None


def _stated_samples(file: Any, format: str) -> int | None:
    """Returns the samples of a channel that the header states."""
    return int(file.frames) if format != "MP3" and file.frames < _UNSTATED_SAMPLES else None


def _heard(samples: int, stated: int | None, part: Part, item: str) -> int:
    """Checks the ``samples`` that ``part`` held against the stated number, and returns them."""
    if samples < part.least_samples or stated not in (None, samples):
        raise damaged(item, "sound")
    return samples


def _same_shape(shape: tuple[int, int], file: Any, item: str) -> tuple[int, int]:
    """Returns (rate, channels) of ``file``. Raises BadRequest if they are not ``shape``, those of the part before."""
    found = (file.samplerate, file.channels)
    if shape not in ((0, 0), found):
        raise _shape_changed(item)
    return found


def _shape_changed(item: str) -> UnsupportedMedia:
    reason = "the sound changes its sample rate or its channels between its parts"
    return problem(UnsupportedMedia, item, UNSUPPORTED, reason)


def _library(name: str) -> Any:
    """Imports soundfile (libsndfile), av (FFmpeg), soxr or numpy, when the first sound comes."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: no libsndfile for this system
        raise TriptychError(
            f"audio needs {name}, which is not to be had on this server ({error}); `make install` installs it, or this "
            "package's extra `audio`",
            code="audio_not_installed",
        ) from None


def _blocks(file: Any, samples: int, limits: MediaLimits, item: str) -> Iterator[Any]:
    """Yields the file's samples, with ``samples`` before them, as float32 [samples, channels], each valid until the
    next. Stops at the limit, whatever the header says.
    """
    np = _library("numpy")
    values = np.empty((BLOCK_VALUES // file.channels, file.channels), np.float32)
    while count := file.buffer_read_into(values, "float32"):
        samples += count
        _check_length(samples, file, limits, item)
        yield values[:count]


def _mono(block: Any, item: str) -> Any:
    """Returns the mean of all channels: float32 [samples], a copy.

    By columns, which is four times as fast as numpy's by rows.
    """
    channels = block.shape[1]
    mono = block[:, 0].copy()
    for channel in range(1, channels):
        mono += block[:, channel]
    mono /= channels
    if not abs(mono).max() <= MAX_AMPLITUDE:  # this way round, as NaN is no more and no less
        raise damaged(item, "sound")
    return mono


def _resampler(rate: int, new_rate: int, item: str) -> Any:
    """Returns a function that takes a block, and whether it is the last, and returns the samples at ``new_rate`` that
    are ready. The result does not depend on how blocks are cut.
    """
    if rate == new_rate:
        return lambda block, last: block
    if not RATES_HZ[0] <= new_rate <= RATES_HZ[1]:
        raise problem(BadRequest, item, UNSUPPORTED, f"sound cannot be resampled to {new_rate} Hz")
    stream = _library("soxr").ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(block, last=last)


def _check_shape(rate: int, channels: int, item: str) -> None:
    low, high = RATES_HZ
    if not low <= rate <= high:
        reason = f"the sound has {rate:,} samples a second; from {low:,} to {high:,} are read"
        raise problem(UnsupportedMedia, item, UNSUPPORTED, reason)
    if channels > MAX_CHANNELS:
        reason = f"the sound has {channels} channels; at most {MAX_CHANNELS} are read"
        raise problem(UnsupportedMedia, item, UNSUPPORTED, reason)


def _check_length(samples: int, file: Any, limits: MediaLimits, item: str) -> None:
    longest_s = limits.media_max_audio_s
    if samples > longest_s * file.samplerate:
        reason = f"the sound is longer than the limit of {longest_s:g} s (--media-max-audio-s)"
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
    if samples * file.channels > longest_s * VALUES_PER_S:
        reason = (
            f"the sound has {file.channels} channels of {file.samplerate:,} Hz; all together may have as many samples "
            f"as {longest_s:g} s (--media-max-audio-s) of {VALUES_PER_S:,} Hz"
        )
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)


def _check_not_empty(samples: int, item: str) -> None:
    if samples == 0:
        raise problem(BadRequest, item, TOO_SMALL, "the sound has no samples")
