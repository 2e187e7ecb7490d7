"""Videos and sounds made to harm, and decoders that die: one request's error each, in bounded time and memory."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import struct
import time
from pathlib import Path

import pytest

pytest.importorskip("av", reason="the extra `video` is not installed")
pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

from benchmarks.audio_model import audio_checkpoint
from support import hostile_files as files
from support.background import served
from support.checkpoints import image_part, picture_url
from support.deployment import deployment
from support.loops import SOON_S, until, until_async
from support.videos import broken_in_the_middle, film_of, patched, sound_only, video
from triptych.config.media import MediaLimits
from triptych.media.sandbox import process

LIAR = str(Path(__file__).parents[1] / "support" / "lying_decoder.py")
MAX_BYTES = 400 << 20
"""Of the server and of each decoder, at any time; a decoder with FFmpeg and numpy takes some 100 MB."""
LEAKS = ("Traceback", "av.", "FFmpeg", "Errno", "object at 0x", "libsnd")
FILM = video(64, 48, frames=12)
WEBM = video(64, 48, frames=12, codec="libvpx-vp9", container="webm")
AVI = video(64, 48, frames=12, codec="mjpeg", container="avi")
LIMITS = MediaLimits(
    media_max_video_bytes=4 << 20,
    media_max_video_s=20,
    media_max_video_frames=200,
    media_max_audio_s=20,
    media_max_bytes=4 << 20,
)


def wav(samples=16_000, channels=1, rate=16_000, stated=None):
    """A WAV file of silence, whose header states ``stated`` bytes of it."""
    size = samples * channels * 2
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * channels * 2, channels * 2 & 0xFFFF, 16)
    body = b"WAVE" + head + b"data" + struct.pack("<I", size if stated is None else stated) + bytes(size)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def first_frame_says(data, width, height):
    """An AVI of Motion JPEG in which every frame says that it is so large; the file's own header is left as it is."""
    changed = bytearray(data)
    at = 0
    while (at := changed.find(b"\xff\xc0", at + 1)) > 0:
        struct.pack_into(">HH", changed, at + 5, height, width)
    return bytes(changed)


VIDEOS = {
    "nothing": (b"", 400, "empty"),
    "zeros": (bytes(4096), 415, "not a video"),
    "magic only": (FILM[:12], 400, "damaged"),
    "a header without its frames": (FILM[: FILM.index(b"mdat")], 400, "damaged"),
    "cut in the middle": (FILM[: len(FILM) // 2], 400, "damaged"),
    "a webm cut in the middle": (WEBM[: len(WEBM) // 2], 400, "damaged"),
    "noise in the middle": (broken_in_the_middle(video(256, 192, frames=12)), 400, "damaged"),
    "frames of another size than stated": (first_frame_says(AVI, 9000, 9000), 400, "damaged"),
    "frames of 20,000 scans": (film_of(files.jpeg_of_scans(2000, 2000, 20_000), 2000, 2000), 413, "100 scans"),
    "a table of four thousand million samples": (patched(FILM, b"stsz", 8, 0xFFFF_FFFF), 400, "damaged"),
    "samples beyond the end of the file": (patched(FILM, b"stco", 8, 0x7FFF_FFFF), 400, "damaged"),
    "more frames than allowed": (video(16, 16, frames=201, fps=100), 413, "--media-max-video-frames"),
    "longer than allowed": (video(16, 16, frames=21, fps=1), 413, "--media-max-video-s"),
    "1 x 1 pixels": (video(2, 2, frames=4, codec="mjpeg", container="avi"), 400, "--media-min-side-px"),
    "sound only": (sound_only(), 400, "no video"),
    "larger than allowed": (FILM + bytes(4 << 20), 413, "--media-max-video-bytes"),
    "a picture": (files.encoded("PNG"), 415, "PNG"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "SVG"),
    "page and film": (b"<html>" + FILM, 415, "HTML"),
    "zip and film": (b"PK\3\4" + FILM, 415, "not a video"),
    "playlist of local files": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415, "not a video"),
    "concat script": (b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "not a video"),
}
SOUNDS = {
    "nothing": (b"", 400, "empty"),
    "zeros": (bytes(4096), 415, "not a sound"),
    "magic only": (b"RIFF\0\0\0\0WAVE", 400, "damaged"),
    "cut in the middle": (wav()[:9000], 400, "damaged"),
    "more samples than there are": (wav()[:-1000], 400, "damaged"),
    "a length that nobody knew": (wav(samples=21 * 16_000, stated=0xFFFF_FFFF), 413, "--media-max-audio-s"),
    "65,535 channels": (wav(samples=1, channels=65_535), 400, "damaged"),
    "a rate of 2 GHz": (wav(rate=2_000_000_000), 415, "samples a second"),
    "longer than allowed": (wav(samples=21 * 16_000), 413, "--media-max-audio-s"),
    "one sample": (wav(samples=1), 415, "too short"),
    "no samples": (wav(samples=0), 400, "no samples"),
    "flac of noise": (b"fLaC" + bytes(range(256)) * 16, 400, "damaged"),
    "ogg of noise": (b"OggS" + bytes(range(256)) * 16, 400, "damaged"),
    "mp3 of noise": (b"\xff\xfb\x90\x00" + bytes(range(256)) * 16, 400, ""),
    "a film": (FILM, 415, "no sound"),
    "a picture": (files.encoded("PNG"), 415, "an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not a sound"),
    "page and sound": (b"<html>" + wav(), 415, "not a sound"),
    "larger than allowed": (wav() + bytes(4 << 20), 413, "--media-max-bytes"),
}
SERVED = {
    "film and page": (FILM + b"<html><script>alert(1)</script></html>", "video"),
    "film and zip": (FILM + b"PK\5\6" + bytes(18), "video"),
    "a size of 65,535 in its header, another in its frames": (patched(FILM, b"tkhd", 76, 65_535 << 16), "video"),
    "a duration of days, and seconds of frames": (patched(FILM, b"mdhd", 16, 0x7FFF_FFFF), "video"),
    "a box longer than the file": (patched(FILM, b"moov", -8, 0x7FFF_FFFF), "video"),
    "sound and page": (wav() + b"<html><script>alert(1)</script></html>", "audio"),
}
"""What stands behind a sound file, or is said twice in it, is not looked at. Refusing it would be as good."""


def part(data, kind):
    url = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def ask(data, kind):
    return [part(data, kind), {"type": "text", "text": "what?"}]


@pytest.fixture(scope="module")
def seeing():
    with served(limits=LIMITS) as one:
        yield one


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    with served(model=audio_checkpoint(tmp_path_factory.mktemp("audio") / "m"), limits=LIMITS) as one:
        yield one


def decoders():
    """Resident bytes of this process's children."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if int(fields["PPid"]) == os.getpid() and "VmHWM" in fields:
            found[int(fields["Pid"])] = int(fields["VmHWM"].split()[0]) << 10
    return found


def refused(server, kind, case, good):
    data, status, word = case
    begun = time.monotonic()
    answer = server.chat(ask(data, kind))
    assert time.monotonic() - begun < SOON_S
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    field = f"messages[0].content[0].{kind}_url"
    assert error["param"] == field, error
    assert error["message"].startswith(f"{field}: "), error
    assert word in error["message"], error
    assert not [leak for leak in LEAKS if leak in answer.text], error
    assert max(decoders().values(), default=0) < MAX_BYTES
    assert server.chat(ask(good, kind)).status_code == 200


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video(seeing, name):
    refused(seeing, "video", VIDEOS[name], FILM)


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound(hearing, name):
    refused(hearing, "audio", SOUNDS[name], wav())


@pytest.mark.parametrize("name", SERVED)
def test_what_does_no_harm_may_be_served(seeing, hearing, name):
    data, kind = SERVED[name]
    answer = (seeing if kind == "video" else hearing).chat(ask(data, kind))
    assert answer.status_code in (200, 400), answer.text


def test_nothing_so_far_has_cost_a_decoder(seeing, hearing):
    for server in (seeing, hearing):
        text = server.http.get("/metrics").text
        for name in ("crashed", "timed_out"):
            rows = [line for line in text.splitlines() if line.startswith(f"triptych_media_decode_{name}_total")]
            assert len(rows) == 2, "the frontend's and the worker's"
            assert all(float(row.rsplit(" ", 1)[1]) == 0 for row in rows), rows


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("place", ["frontend", "worker"])
async def test_a_decoder_that_is_lost_costs_no_request(place):
    """At the frontend it reads a video's header, at the worker it decodes a picture."""
    others = set(decoders())  # of the deployments above
    async with deployment(limits=MediaLimits(media_decode_workers=1)) as d:
        good = [image_part(picture_url(40, 40)), {"type": "text", "text": "what?"}]
        film = ask(FILM, "video")
        for content in (good, film):
            assert (await d.chat(content)).status_code == 200
        at_worker = d.worker.engine._decoder.sandbox.pids
        (pid,) = at_worker if place == "worker" else set(decoders()) - set(at_worker) - others
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: is_stopped(pid), "the decoder stands still")
        other = ask(files.encoded("PNG", 50, 50), "image") if place == "worker" else film
        waiting = asyncio.create_task(d.chat(other))

        async def is_there():
            text = (await d.http.get("/metrics")).text
            busy = "triptych_media_decode_busy " if place == "frontend" else "triptych_media_decode_busy{"
            return any(line.startswith(busy) and line.endswith(" 1.0") for line in text.splitlines())

        await until_async(is_there, "the medium is at the decoder")
        os.kill(pid, signal.SIGSEGV)
        os.kill(pid, signal.SIGCONT)
        for answer in (await waiting, await d.chat(good), await d.chat(ask(WEBM, "video"))):
            assert answer.status_code == 200, answer.text
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


@pytest.mark.parametrize("place", ["frontend", "worker"])
@pytest.mark.parametrize("how", ["crashes", "is_killed"])
async def test_a_medium_that_no_decoder_survives_fails_its_own_request_only(monkeypatch, place, how):
    """4xx where it is the medium's fault, 503 where the system ends decoders."""
    async with deployment(limits=MediaLimits(media_decode_workers=1)) as d:
        other = ask(files.encoded("PNG", 50, 50), "image") if place == "worker" else ask(FILM, "video")
        with monkeypatch.context() as patch:
            patch.setattr(process, "COMMAND", (LIAR, how))
            answer = await d.chat(other)
        error = answer.json()["error"]
        assert error["param"].startswith("messages[0].content[0]"), error
        if how == "crashes":
            assert (answer.status_code, error["code"]) == (400, "media_decode_failed"), error
            assert "SIGSEGV" in error["message"]
        else:
            assert (answer.status_code, error["code"]) == (503, "media_decoder_unavailable"), error
            assert int(answer.headers["retry-after"]) > 0
        assert (await d.chat(other)).status_code == 200
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


async def test_a_picture_that_swells_is_refused_by_the_flag():
    url = picture_url(7000, 7000)  # takes seconds, in which no worker may fall silent
    async with deployment(limits=MediaLimits(media_decode_workers=1, media_decode_memory_mib=160)) as d:
        for _ in range(2):
            answer = await d.chat([image_part(url)])
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "media_decode_failed")
            assert "--media-decode-memory-mib" in answer.text
        assert (await d.chat([image_part(picture_url(40, 40))])).status_code == 200
