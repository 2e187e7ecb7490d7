"""Divides a sound file into the parts that its reader takes one at a time, and reads the stated length of an MP3.

An OGG file may be a chain of streams (RFC 3533, 4), and some MP3 files are several files written one after the other.
libsndfile reads only the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 1000
_MAX_TAGS = 100
"""Maximum number of ID3 tags before one MP3."""
_ID3 = 10
_ID3V1 = 128
_ADTS_BYTES = 1 << 13
"""Bytes, more than any AAC frame has."""
_PADDING = re.compile(rb"\0*")
_LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]..", re.DOTALL)
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_1 = (44_100, 48_000, 32_000)
"""Sample rates of MPEG-1, layer III, in Hz. MPEG-2 has half of them, MPEG-2.5 a quarter (ISO/IEC 11172-3, 13818-3)."""
_SLACK_FRAMES = 2
"""Frames of an MP3 that may be missing: some encoders count the header's frame too, and decoders have a delay."""


class CutOff(Exception):
    """Raised for a file that ends within one of its parts."""


class TooManyParts(Exception):
    """Raised for more parts than ``MAX_PARTS``."""


class Part(NamedTuple):
    data: bytes
    least_samples: int = 0
    """Fewest samples that the part must give."""
    states_length: bool = True
    """Whether the part states its length. If not, libsndfile guesses it and reads no more than that."""


def parts_of(data: bytes, format: str) -> Iterator[Part]:
    """Returns the parts of a file whose magic says ``format``, each as a file of its own.

    Raises CutOff and TooManyParts.
    """
    return {"OGG": _ogg, "MP3": _mp3, "AAC": _aac}.get(format, _whole)(data)


def _whole(data: bytes) -> Iterator[Part]:
    yield Part(data)


def _aac(data: bytes) -> Iterator[Part]:
    """Removes the last frame if it is cut off: FFmpeg takes that for an error (ADTS: ISO/IEC 14496-3, 1.A.2)."""
    at = 0
    while at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0:
        size = (int.from_bytes(data[at + 3 : at + 6]) >> 5) & 0x1FFF
        if size < 7 or at + size > len(data):
            break
        at += size
    is_cut = 0 < len(data) - at < _ADTS_BYTES and data[at : at + 1] == b"\xff"
    yield Part(data[:at] if is_cut else data)


def _ogg(data: bytes) -> Iterator[Part]:
    begins = [0]
    at, heads = 0, True
    while (at := data.find(b"OggS", at)) >= 0:
        head = data[at : at + 27]
        if len(head) < 27:
            raise CutOff
        first = bool(head[5] & 2)  # of a logical stream; those that run side by side begin together
        if first and not heads:
            begins.append(at)
        if len(begins) > MAX_PARTS:
            raise TooManyParts
        heads = first
        at += 27 + head[26] + sum(data[at + 27 : at + 27 + head[26]])
        if at > len(data):
            raise CutOff
    if len(begins) == 1:
        yield Part(data)
        return
    for begin, end in zip(begins, [*begins[1:], len(data)], strict=True):
        yield Part(data[begin:end])


def _mp3(data: bytes) -> Iterator[Part]:
    begin = 0
    for _ in range(MAX_PARTS):
        stated = _stated(data, begin)
        if stated is None:
            yield Part(data[begin : _cut_frame(data, behind_tags(data, begin))], states_length=False)
            return
        if not stated.least_samples and stated.end > len(data):
            raise CutOff
        end = stated.end + (_ID3V1 if data[stated.end : stated.end + 3] == b"TAG" else 0)
        follows = _stated(data, end) is not None
        part = data[begin:end] if follows else data[begin:]
        yield Part(part, stated.least_samples, stated.is_read)
        if not follows:
            return
        begin = end
    raise TooManyParts


class _Stated(NamedTuple):
    least_samples: int
    """Minimum number of samples by the stated length; 0 if none is stated."""
    end: int
    """The position at which the sound ends; if that is not stated, the end of its first frame's header."""
    is_read: bool
    """Whether libsndfile reads the stated length too."""


def _stated(data: bytes, at: int) -> _Stated | None:
    """Reads the length that the first frame of the MP3 at ``at``, behind its tags, states. None if it states none."""
    at = behind_tags(data, at)
    if not _LAYER_3.match(data, at):
        return None
    first = data[at : at + 64]
    is_mpeg_1 = first[1] >> 3 & 3 == 3  # MPEG-1, else 2 or 2.5
    mono = first[3] >> 6 == 3
    frame_samples = 1152 if is_mpeg_1 else 576
    side = (17 if is_mpeg_1 else 9) if mono else (32 if is_mpeg_1 else 17)
    tag = data[at + 4 + side + (0 if first[1] & 1 else 2) :][:160]  # a checksum stands before the side information
    unheard = 0
    read = tag[:4] in (b"Xing", b"Info")
    if read and len(tag) >= 16:
        flags = tag[7]
        numbers = iter((_uint32(tag, 8), _uint32(tag, 12)))
        frames = next(numbers) if flags & 1 else 0
        size = next(numbers) if flags & 2 else 0
        delays = 8 + sum(length for bit, length in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) + 21
        edges = int.from_bytes(tag[delays : delays + 3])  # the encoder's delay and padding: LAME's part of the header
        unheard = (edges >> 12) + (edges & 0xFFF)
    elif first[36:40] == b"VBRI" and len(first) >= 54:
        size, frames = _uint32(first, 46), _uint32(first, 50)
    else:
        return None
    least = max(0, (frames - _SLACK_FRAMES) * frame_samples - unheard)
    return _Stated(least, at + max(size, 4), read and frames > 0)


def behind_tags(data: bytes, at: int) -> int:
    """Returns where the file begins that follows the ID3 tags at ``at``, and zeros behind them."""
    for _ in range(_MAX_TAGS):
        tag = data[at : at + _ID3]
        if len(tag) < _ID3 or tag[:3] != b"ID3":
            break
        size = sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
        at += _ID3 + size + (_ID3 if tag[5] & 0x10 else 0)  # a footer
    padding = _PADDING.match(data, at)
    return padding.end() if padding else at


def _cut_frame(data: bytes, at: int) -> int:
    """Returns where the MP3's last frame begins if it is cut off, else the file's end.

    libsndfile takes a frame that is cut off for an error.
    """
    while at + 4 <= len(data) and _LAYER_3.match(data, at):
        head = data[at : at + 4]
        version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
        if bitrate in (0, 15) or rate == 3:
            break
        is_mpeg_1 = version == 3
        bits = (_KBITS_1 if is_mpeg_1 else _KBITS_2)[bitrate] * 1000
        hertz = _RATES_1[rate] // {3: 1, 2: 2, 0: 4}[version]
        size = (144 if is_mpeg_1 else 72) * bits // hertz + (head[2] >> 1 & 1)
        if at + size > len(data):
            return at
        at += size
    return len(data)


def _uint32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4])
