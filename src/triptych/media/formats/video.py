"""Reads the facts about a video without decoding it, and decodes the frames that the model sees.

PyAV (FFmpeg's libraries) reads the files. It is an extra that is imported at the first video, so that a frontend
without videos does not need it. FFmpeg is restricted to the container that the magic bytes show, to a few codecs, and
to the data in memory: it opens no other file and no URL.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.contracts.media import Video
from triptych.media.byte_limit import byte_limit
from triptych.media.errors import DAMAGED, TOO_LARGE, UNSUPPORTED, damaged, problem, too_many_scans
from triptych.media.formats.image_header import MAX_SCANS, SCAN
from triptych.media.formats.iso_tracks import MAX_TRACKS, Turn, has_many_tracks, turn_of
from triptych.media.formats.sniff import check_size, type_of

SUPPORTED_VIDEOS = ("MP4", "QuickTime", "WebM", "Matroska", "AVI")
CODECS = {
    "h264": "H.264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "vp9": "VP9",
    "av1": "AV1",
    "mpeg4": "MPEG-4",
    "mjpeg": "Motion JPEG",
}
"""Supported codecs by FFmpeg's names. Decoders of rarer codecs, where its faults hide, are not used."""
_DECODERS = {"libdav1d": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}

_STILLS = rb"(?!avif|avis|heic|heix|heim|heis|hevc|hevx|mif1|msf1|M4A |M4B )"
MAGIC = (
    # pattern, format, FFmpeg's name of the container
    (re.compile(rb".{4}ftypqt  ", re.DOTALL), "QuickTime", "mov"),
    (re.compile(rb".{4}ftyp" + _STILLS, re.DOTALL), "MP4", "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3.{0,64}\x42\x82.{1,8}?webm", re.DOTALL), "WebM", "matroska"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "Matroska", "matroska"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "AVI", "avi"),
)
RGB_BYTES = 3
"""Bytes of a decoded pixel."""
_PACKETS_A_FRAME = 16
"""Packets of sound and text that may come with one frame. Bounds the time that a hostile file takes."""
MAX_FPS = 1000
_SLACK_S = 0.5
_SLACK = 0.05
"""Share by which a file's stated duration may exceed its content before the file counts as truncated."""


class VideoInfo(NamedTuple):
    """Describes a video that passed every check that needs no decoding."""

    format: str
    """A member of ``SUPPORTED_VIDEOS``."""
    width: int
    """Pixels as the model will see it: the track's turn applied."""
    height: int
    num_frames: int
    """Number of frames, counted rather than taken from the header."""
    fps: float
    """Frames a second, on average."""
    duration_s: float
    turn: Turn
    """The rotation that decoding has to apply."""


def inspect_video(data: bytes, limits: MediaLimits, item: str) -> VideoInfo:
    """Finds format, size, length and number of frames, and checks them against ``limits``. Decodes no frame.

    Reads all packets of the file, which takes some milliseconds, or some hundred for the largest files: run it in a
    thread.
    Raises UnsupportedMedia (415) for other files and codecs, BadRequest (400) for damaged, truncated and tiny videos,
    PayloadTooLarge (413) over a limit, TriptychError (500) without PyAV.
    """
    if len(data) > (limit := byte_limit("video", limits)).size_bytes:
        raise limit.exceeded(item)
    format, container = _format(data, item)
    if container == "mov" and has_many_tracks(data):
        reason = f"the video has more than {MAX_TRACKS} tracks, which is the most that are read"
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
    with _opened(data, container, limits, item) as (file, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, limits, item)
        stated_s = (file.duration or 0) / 1e6
        _check_duration(stated_s, limits, item)
        frames, seen_s = _count(file, stream, limits, item)
        if frames == 0 or stated_s - seen_s > max(_SLACK_S, _SLACK * stated_s):
            raise damaged(item, "video")
        _check_work(frames, width * height, limits, item)
        fps = float(stream.average_rate or 0) or (frames / seen_s if seen_s else 1.0)
        duration_s = max(stated_s, seen_s, frames / min(fps, MAX_FPS))
        _check_duration(duration_s, limits, item)
        turn = turn_of(data, stream.id) if container == "mov" else Turn()
    if fps > MAX_FPS:
        raise problem(BadRequest, item, DAMAGED, f"the video says that it has {fps:.0f} frames a second")
    if turn.degrees in (90, 270):
        width, height = height, width
    return VideoInfo(format, width, height, frames, fps, duration_s, turn)


def decode_video(medium: Video, limits: MediaLimits, item: str = "video") -> Any:
    """Returns the frames ``medium.frame_indices`` as uint8 [frames, height, width, 3] in RGB, C-contiguous, upright.

    Decodes from the first frame to the last one wanted and keeps only those wanted: run it in a thread (about 2 ms a
    frame of full HD). Checks the bytes by itself and relies on nothing the medium states. Raises BadRequest
    (``media_damaged``), PayloadTooLarge or UnsupportedMedia, and nothing else for any data.
    """
    data = bytes(medium.data)
    info = inspect_video(data, limits, item)
    wanted = medium.frame_indices
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= info.num_frames:
        reason = f"frames are asked for that are not among the {info.num_frames} of the video, or none"
        raise problem(BadRequest, item, DAMAGED, reason)
    pixels = len(wanted) * info.width * info.height
    if pixels > limits.media_max_video_pixels:
        reason = (
            f"the {len(wanted)} frames of the video that the model sees have {pixels:,} pixels; "
            f"the limit is {limits.media_max_video_pixels:,} (--media-max-video-pixels)"
        )
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
    return _decode(data, wanted, info, limits, item)


def video_bytes(frames: Any) -> int:
    """Returns the bytes of a decoded video."""
    return int(frames.nbytes)


def _decode(data: bytes, wanted: tuple[int, ...], info: VideoInfo, limits: MediaLimits, item: str) -> Any:
    np = _library("numpy")
    turned = info.turn.degrees in (90, 270)
    stored = (info.height, info.width) if turned else (info.width, info.height)
    video = np.empty((len(wanted), info.height, info.width, 3), np.uint8)  # [frames, height, width, 3]
    found = 0
    with _opened(data, _format(data, item)[1], limits, item) as (file, stream):
        stream.codec_context.thread_count = 1  # media are decoded side by side already
        # Only the first frames were read when the file was opened; a later frame may have another size.
        stream.codec_context.options = {"max_pixels": str(limits.media_max_pixels)}
        for index, frame in enumerate(file.decode(stream)):
            if (frame.width, frame.height) != stored:
                raise problem(BadRequest, item, DAMAGED, "the video's frames are not of the size that it states")
            if index == wanted[found]:
                if frame.is_corrupt:
                    raise damaged(item, "video")
                pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()  # a decoder may start no thread
                shown = pixels[:, :: -1 if info.turn.is_mirrored else 1]
                video[found] = np.rot90(shown, -info.turn.degrees // 90)
                found += 1
            if found == len(wanted):
                return video
    raise problem(BadRequest, item, DAMAGED, f"the video has fewer frames than the {info.num_frames} that it states")


def _library(name: str) -> Any:
    """Imports PyAV or numpy, when the first video comes."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise TriptychError(
            f"video needs {name}, which is not to be had on this server ({error}); `make install` installs it, or this "
            "package's extra `video`",
            code="video_not_installed",
        ) from None


@contextmanager
def _opened(data: bytes, container: str, limits: MediaLimits, item: str) -> Iterator[tuple[Any, Any]]:
    """Opens (file, first video stream). FFmpeg's errors about damaged data, within the block too, become BadRequest."""
    av = _library("av")
    options = {
        "codec_whitelist": ",".join((*CODECS, *_DECODERS)),
        "protocol_whitelist": "none",
        "max_pixels": str(limits.media_max_pixels),
        "max_streams": str(MAX_TRACKS),
    }
    try:
        with av.open(BytesIO(data), format=container, options=options, metadata_errors="replace") as file:
            if not file.streams.video:
                raise problem(BadRequest, item, DAMAGED, "the file holds no video (sound only?)")
            stream = file.streams.video[0]
            _check_codec(stream, item)
            yield file, stream
    except (av.FFmpegError, ValueError, EOFError, RuntimeError, MemoryError, ArithmeticError):
        raise damaged(item, "video") from None


def _check_codec(stream: Any, item: str) -> None:
    """Checks the codec. FFmpeg would open no other codec anyway, but its error would not be clear."""
    name = stream.codec_context.name if stream.codec_context is not None else "unknown"
    if _DECODERS.get(name, name) not in CODECS:
        known = ", ".join(CODECS.values())
        raise problem(
            UnsupportedMedia, item, UNSUPPORTED, f"the video's codec is not served ({name:.16}); send one of {known}"
        )


def _count(file: Any, stream: Any, limits: MediaLimits, item: str) -> tuple[int, float]:
    """Counts (frames that will be shown, seconds to the end of the longest stream), by the packets in the file."""
    frames = 0
    begin_s, end_s = None, 0.0
    codec = stream.codec_context.name
    hidden = codec in ("vp8", "libvpx")
    for count, packet in enumerate(file.demux()):
        if packet.is_corrupt:
            raise damaged(item, "video")
        if count > limits.media_max_video_frames * _PACKETS_A_FRAME:
            raise problem(PayloadTooLarge, item, TOO_LARGE, "the video has too many packets for its frames")
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            at_s = float(packet.pts * packet.time_base)
            begin_s = at_s if begin_s is None else min(begin_s, at_s)
            end_s = max(end_s, at_s + float((packet.duration or 0) * packet.time_base))
        if packet.stream_index != stream.index or packet.is_discard or (hidden and not _is_shown(packet)):
            continue
        frames += 1
        if frames > limits.media_max_video_frames:
            reason = f"the video has more than {limits.media_max_video_frames:,} frames (--media-max-video-frames)"
            raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
        if codec == "mjpeg" and bytes(packet).count(SCAN) > MAX_SCANS:  # FFmpeg finds them wherever they are
            raise too_many_scans(item, "a frame of the video", MAX_SCANS)
    return frames, end_s - min(begin_s or 0.0, 0.0)


def _is_shown(packet: Any) -> bool:
    """Tells whether a frame of VP8 is shown, or only referred to by others (RFC 6386, 9.1: bit 4 of the first byte)."""
    return bool(memoryview(packet)[0] >> 4 & 1)


def _format(data: bytes, item: str) -> tuple[str, str]:
    """Returns (format, FFmpeg's name of the container), by the first bytes."""
    if not data:
        raise problem(BadRequest, item, DAMAGED, "the video is empty (0 bytes)")
    for magic, format, container in MAGIC:
        if magic.match(data):
            return format, container
    found = type_of(data)
    what = "the data is not a video" if found is None else f"the file type is not a video's: {found}"
    raise problem(UnsupportedMedia, item, UNSUPPORTED, f"{what}; send one of {', '.join(SUPPORTED_VIDEOS)}")


def _check_size(width: int, height: int, limits: MediaLimits, item: str) -> None:
    if width < 1 or height < 1:  # FFmpeg takes no size over the limit from a frame's own header
        reason = "no frame of the video can be read: they are damaged, or of more pixels than --media-max-pixels"
        raise problem(BadRequest, item, DAMAGED, reason)
    check_size(width, height, limits, item, whole="the video", frame="a frame of the video")


def _check_work(frames: int, pixels: int, limits: MediaLimits, item: str) -> None:
    if frames * pixels > limits.media_max_video_work:
        reason = (
            f"the {frames:,} frames of the video have {frames * pixels:,} pixels; "
            f"the limit is {limits.media_max_video_work:,} (--media-max-video-work)"
        )
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)


def _check_duration(duration_s: float, limits: MediaLimits, item: str) -> None:
    if duration_s > limits.media_max_video_s:
        reason = (
            f"the video is {duration_s:.0f} s long; the limit is {limits.media_max_video_s:g} s (--media-max-video-s)"
        )
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
