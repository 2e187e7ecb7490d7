"""Every format and codec that is served is decoded in confined decoders as it is in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra `video` is not installed")
pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

from support.av_sounds import CODECS, av_sound
from support.heic_files import frame, grid, heic
from support.media_files import picture, quadrants
from support.sound_files import encoded, tones
from support.videos import KINDS, video
from triptych.config.media import MediaLimits
from triptych.contracts.media import FILE_TYPES, Medium
from triptych.media.formats.audio import decode_audio
from triptych.media.formats.image import decode_image
from triptych.media.formats.inspect import inspect
from triptych.media.formats.video import decode_video
from triptych.media.sandbox import landlock, process, seccomp
from triptych.media.sandbox.confinement import COMPLETE, TWOFOLD
from triptych.media.sandbox.pool import Sandbox

DECODE = {"image": decode_image, "video": decode_video, "audio": decode_audio}
DECODER = str(Path(__file__).parents[3] / "support" / "hostile_decoder.py")
LIMITS = MediaLimits(media_decode_workers=1)
STEREO = np.stack([tones(1.0, 48_000), tones(1.0, 48_000, seed=2)], axis=1)
AV1_FILM = Path(__file__).parents[3] / "data" / "av1_film.webm"


def medium(kind: str, data: bytes, **fields) -> Medium:
    return FILE_TYPES[kind](content_hash="", data=data, **fields)


def media() -> dict[str, Medium]:
    made = {f"{name} picture": medium("image", picture(name, 96, 64)) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
    made |= {f"{name} picture": medium("image", picture(name, 96, 64)) for name in ("TIFF", "AVIF")}
    made["large AVIF picture"] = medium("image", picture("AVIF", 1600, 1200))
    made["palette"] = medium("image", picture("PNG", 96, 64, "P"))
    made["progressive"] = medium("image", picture("JPEG", 96, 64, progressive=True))
    made["HEIC picture"] = medium("image", heic(frame(quadrants(96, 64))))
    made["HEIC picture in tiles"] = medium("image", heic(*grid(quadrants(192, 128), 64)))
    for container, codec, options, _ in KINDS:
        film = video(96, 64, 12, 8, codec, container, **options)
        made[f"{codec} in {container} {len(options)}"] = medium("video", film, frame_indices=(0, 5, 11))
    made["AV1 in WebM"] = medium("video", AV1_FILM.read_bytes(), frame_indices=(0, 5, 11))
    made["large film"] = medium("video", video(1280, 720, 8), frame_indices=tuple(range(8)))
    for name in ("WAV", "FLAC", "MP3", "OGG"):
        made[f"{name} sound"] = medium("audio", encoded(tones(8), format=name), decode_rate=8_000)
    for name in CODECS:
        made[f"{name} sound"] = medium("audio", av_sound(STEREO, kind=name), decode_rate=16_000)
    return made


@pytest.mark.skipif(not seccomp.is_available(), reason="no seccomp filters for this architecture")
@pytest.mark.parametrize("way", ["as it is", "no-landlock"])
async def test_every_format_is_decoded(monkeypatch, way):

    if way != "as it is":
        monkeypatch.setattr(process, "COMMAND", (DECODER, way))
    sandbox = Sandbox(LIMITS)
    try:
        for name, one in media().items():
            facts = inspect(one.kind, one.data, LIMITS, "item")
            assert await sandbox.inspect(one.kind, one.data, "item") == facts, name
            made = await sandbox.decode(one, "item")
            assert np.array_equal(np.asarray(made), np.asarray(DECODE[one.kind](one, LIMITS))), name
        assert sandbox.counts.retried == 0
        assert sandbox.confinement.level == (TWOFOLD if way == "as it is" and landlock.version() else COMPLETE)
    finally:
        await sandbox.close()
