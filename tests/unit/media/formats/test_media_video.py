"""Videos: facts without decoding, chosen frames, and files that lie."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

from support.media_files import picture
from support.videos import KINDS, broken_in_the_middle, frame_pixels, patched, sound_only, turned, video, with_tracks
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.contracts.media import Medium, Video
from triptych.media.formats.inspect import inspect
from triptych.media.formats.video import decode_video, inspect_video
from triptych.media.naming import sampled_name

LIMITS = MediaLimits()
ITEM = "messages[0].content[0].video_url"


def medium(data: bytes, indices: tuple[int, ...] = (0,)) -> Medium:
    return Video(content_hash="", data=data, frame_indices=indices)


def off(made: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(made.astype(int) - expected.astype(int)).mean())


@pytest.mark.parametrize(("container", "codec", "options", "format"), KINDS)
def test_facts_and_frames_of_every_format(container, codec, options, format):
    data = video(96, 64, 40, 8, codec, container, **options)
    info = inspect_video(data, LIMITS, ITEM)
    assert (info.format, info.width, info.height, info.num_frames, info.fps) == (format, 96, 64, 40, 8.0)
    assert info.duration_s == pytest.approx(5.0, abs=0.2)
    indices = (0, 7, 21, 39)
    frames = decode_video(medium(data, indices), LIMITS)
    assert (frames.shape, frames.dtype) == ((4, 64, 96, 3), np.uint8)
    assert frames.flags.c_contiguous
    for made, index in zip(frames, indices, strict=True):
        right = off(made, frame_pixels(index, 96, 64))
        assert right < 10, index
        assert right < min(off(made, frame_pixels(index + by, 96, 64)) for by in (-2, -1, 1, 2)), "a neighbour's"


def test_the_edge_learns_what_it_needs():
    facts = inspect("video", video(frames=12, fps=8), LIMITS, ITEM)
    assert facts == {"format": "MP4", "width": 64, "height": 48, "num_frames": 12, "fps": 8.0}


def test_a_video_of_a_hundred_tracks():
    assert inspect_video(with_tracks(video(frames=12), 99), LIMITS, ITEM).num_frames == 12


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_upright(degrees):
    data = turned(video(96, 64), degrees)
    info = inspect_video(data, LIMITS, ITEM)
    assert (info.width, info.height) == ((96, 64) if degrees == 180 else (64, 96))
    (frame,) = decode_video(medium(data, (5,)), LIMITS)
    assert off(frame, np.rot90(frame_pixels(5, 96, 64), -degrees // 90)) < 10


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_mirrored_frames_are_shown_so(degrees):
    """As a phone's front camera records them: turned, and then mirrored."""
    data = turned(video(96, 64), degrees, upside_down=True)
    info = inspect_video(data, LIMITS, ITEM)
    assert (info.width, info.height) == ((64, 96) if degrees in (90, 270) else (96, 64))
    (frame,) = decode_video(medium(data, (5,)), LIMITS)
    assert off(frame, np.flipud(np.rot90(frame_pixels(5, 96, 64), -degrees // 90))) < 10


def test_frames_that_the_edit_list_leaves_out_are_none():
    """As players show it: the second half of the file is cut off (ISO/IEC 14496-12, 8.6.6)."""
    data = video(96, 64, frames=30, fps=8)
    (length,) = struct.unpack_from(">I", data, data.index(b"elst") + 12)
    data = patched(data, b"elst", 8, length // 2)
    assert inspect_video(data, LIMITS, ITEM).num_frames == 15
    frames = decode_video(medium(data, tuple(range(15))), LIMITS)
    assert off(frames[14], frame_pixels(14, 96, 64)) < 10


def test_only_chosen_frames_are_kept():
    """A minute of video, of which two frames are wanted, takes the memory of two."""
    data = video(320, 240, 480, 8)
    decode_video(medium(data, (0,)), LIMITS)
    tracemalloc.start()
    try:
        frames = decode_video(medium(data, (1, 470)), LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert frames.nbytes == 2 * 320 * 240 * 3
    assert peak < 8 * frames.nbytes


def vp9_says(width: int, height: int) -> bytes:
    """A WebM whose key frame says another size (VP9's uncompressed header, 64 x 48 as 16-bit fields)."""
    data = video(64, 48, codec="libvpx-vp9", container="webm")
    head = b"\x49\x83\x42"  # the frame's synchronisation code; then 4 bits, width - 1 and height - 1 in 16 bits
    at = data.index(head) + 3
    old = int.from_bytes(data[at : at + 5], "big")
    # bits: color (4: 3 of space, 1 of range), then 16 of width - 1, 16 of height - 1, then the rest
    new = (old >> 36 << 36) | (width - 1) << 20 | (height - 1) << 4 | (old & 0xF)
    return data[:at] + new.to_bytes(5, "big") + data[at + 5 :]


def mjpeg_says(width: int, height: int) -> bytes:
    """An AVI whose header (BITMAPINFOHEADER) and every frame say another size."""
    data = bytearray(video(codec="mjpeg", container="avi"))
    at = 0
    while (at := data.find(b"\xff\xc0\x00\x11\x08", at)) >= 0:
        struct.pack_into(">HH", data, at + 5, height, width)
        at += 9
    struct.pack_into("<ii", data, data.index(b"strf") + 12, width, height)
    return bytes(data)


def second_size() -> bytes:
    """A Motion JPEG of which only the later frames have another size."""
    data = bytearray(video(codec="mjpeg", container="avi"))
    at = data.index(b"\xff\xc0\x00\x11\x08", data.index(b"\xff\xc0\x00\x11\x08") + 9)
    struct.pack_into(">HH", data, at + 5, 32, 32)
    return bytes(data)


SOUND = video(frames=40)
WEBM = video(frames=40, codec="libvpx-vp9", container="webm")
HIDDEN_TRACKS = with_tracks(SOUND, 100, b"\0\0\0\x08free" * 5000)
HOSTILE = {
    "zero bytes": (b"", BadRequest, "media_damaged", "empty"),
    "no video": (b"AAAA", UnsupportedMedia, "media_unsupported", "not a video"),
    "a picture": (picture(), UnsupportedMedia, "media_unsupported", "PNG"),
    "AVIF": (b"\0\0\0\x20ftypavif\0\0\0\0", UnsupportedMedia, "media_unsupported", "AVIF"),
    "rare codec": (
        video(codec="ffv1", container="matroska"),
        UnsupportedMedia,
        "media_unsupported",
        "codec is not served",
    ),
    "truncated MP4": (SOUND[: len(SOUND) // 2], BadRequest, "media_damaged", "truncated"),
    "head of an MP4": (SOUND[:40], BadRequest, "media_damaged", "truncated"),
    "truncated WebM": (WEBM[: len(WEBM) // 2], BadRequest, "media_damaged", "truncated"),
    "sound only": (sound_only(), BadRequest, "media_damaged", "holds no video"),
    "frame rate": (patched(SOUND, b"mdhd", 12, 1), PayloadTooLarge, "media_too_large", "--media-max-video-s"),
    "duration": (patched(SOUND, b"stts", 12, 4_000_000), PayloadTooLarge, "media_too_large", "--media-max-video-s"),
    "fewer frames": (patched(SOUND, b"stsz", 8, 4), BadRequest, "media_damaged", "truncated"),
    "more frames": (patched(SOUND, b"stsz", 8, 400_000_000), BadRequest, "media_damaged", "truncated"),
    "101 tracks": (with_tracks(SOUND, 100), PayloadTooLarge, "media_too_large", "more than 100 tracks"),
    "101 tracks that only FFmpeg finds": (HIDDEN_TRACKS, BadRequest, "media_damaged", "damaged"),
    "65,535-pixel sides": (mjpeg_says(65535, 65535), BadRequest, "media_damaged", "--media-max-pixels"),
    "65,535-pixel WebM": (vp9_says(65535, 65535), BadRequest, "media_damaged", "--media-max-pixels"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_decoding(name):
    data, cls, code, words = HOSTILE[name]
    with pytest.raises(cls, match=words) as caught:
        inspect_video(data, LIMITS, ITEM)
    assert (caught.value.code, caught.value.param) == (code, ITEM)
    assert 400 <= caught.value.status < 500


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "data", [broken_in_the_middle(SOUND), second_size()], ids=["noise in the middle", "a later frame's size"]
)
def test_what_only_decoding_shows_is_refused_too(data):
    info = inspect_video(data, LIMITS, ITEM)
    with pytest.raises(BadRequest) as caught:
        decode_video(medium(data, tuple(range(info.num_frames))), LIMITS)
    assert caught.value.code == "media_damaged"


@pytest.mark.parametrize("indices", [(), (12,), (-1, 0), (3, 2), (1, 1)])
def test_frames_that_a_video_does_not_have_are_refused(indices):
    with pytest.raises(BadRequest, match="frames are asked for"):
        decode_video(medium(video(frames=12), indices), LIMITS)


def test_every_cut_and_flip_is_a_clear_error_or_a_video():
    """No exception but ours, whatever is in the file."""
    data = video(frames=8)
    cuts = [data[:at] for at in range(0, len(data), 97)]
    flips = [data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] for at in range(0, len(data), 61)]
    for one in (*cuts, *flips):
        with contextlib.suppress(BadRequest, PayloadTooLarge, UnsupportedMedia):
            info = inspect_video(one, LIMITS, ITEM)
            decode_video(medium(one, tuple(range(info.num_frames))), LIMITS)


@pytest.mark.parametrize(
    ("limits", "flag"),
    [
        ({"media_max_video_bytes": 100}, "--media-max-video-bytes"),
        ({"media_max_video_s": 1.0}, "--media-max-video-s"),
        ({"media_max_video_frames": 11}, "--media-max-video-frames"),
        ({"media_max_pixels": 64 * 48 - 1}, "--media-max-pixels"),
        ({"media_max_video_work": 12 * 64 * 48 - 1}, "--media-max-video-work"),
    ],
)
def test_limits_name_their_flag(limits, flag):
    with pytest.raises(PayloadTooLarge, match=flag):
        inspect_video(video(frames=12), MediaLimits(**limits), ITEM)


def test_pixels_of_all_chosen_frames_are_bounded():
    limits = MediaLimits(media_max_video_pixels=2 * 64 * 48)
    data = video(frames=12)
    assert len(decode_video(medium(data, (0, 5)), limits)) == 2
    with pytest.raises(PayloadTooLarge, match="--media-max-video-pixels"):
        decode_video(medium(data, (0, 5, 9)), limits)


def test_tiny_videos_are_refused():
    with pytest.raises(BadRequest, match="--media-min-side-px") as caught:
        inspect_video(video(64, 48), MediaLimits(media_min_side_px=49), ITEM)
    assert caught.value.code == "media_too_small"


def test_a_server_without_the_library_says_so(monkeypatch):
    data = video()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(TriptychError, match="extra `video`") as caught:
        inspect_video(data, LIMITS, ITEM)
    assert caught.value.code == "video_not_installed"


def test_other_frames_are_another_content():
    name = "ab" * 32
    assert len({sampled_name(name, (0, 2)), sampled_name(name, (0, 3)), sampled_name("cd" * 32, (0, 2)), name}) == 4
    assert sampled_name(name, (0, 2)) == sampled_name(name, (0, 2))


def test_a_message_without_frames_is_read():
    import msgspec

    bare = msgspec.msgpack.encode({"type": "video", "content_hash": "x"})
    assert msgspec.msgpack.decode(bare, type=Medium) == Video(content_hash="x")
    new = medium(b"x", (0, 3))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=Medium) == new


def test_a_frontend_starts_without_the_library():
    code = "import sys, triptych.cli.serving; print(sorted({'av', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]", "it would cost every start its time"
