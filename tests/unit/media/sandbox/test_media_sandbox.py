import asyncio
import gc
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from support.loops import until
from support.media_files import picture
from support.sound_files import encoded, tones
from support.videos import film_of, frame_pixels, video, with_tracks
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, Unavailable
from triptych.contracts.media import FILE_TYPES, Medium
from triptych.media.formats.inspect import inspect
from triptych.media.formats.sniff import PIXEL_BYTES
from triptych.media.sandbox import pixels, spare
from triptych.media.sandbox.pool import Sandbox
from triptych.media.sandbox.spawn import spawn
from triptych.media.sandbox.wire import INLINE_BYTES

LARGE = (1300, 1000)
"""Its memory may be filled again ..."""
MIDDLING = (900, 700)
"""... and that of this is shared, and made anew each time."""
ITEM = "messages[0].content[1].image_url"


def medium(data: bytes | None = None, kind: str = "image", **fields) -> Medium:
    data = picture() if data is None else data
    return FILE_TYPES[kind](content_hash="", data=data, **fields)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    """Fail a test after which memory of the sandbox or a socket is still open."""
    before = descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while descriptors() - before:  # memory is given back by a thread
        assert time.monotonic() < deadline, "descriptors are left open"
        time.sleep(0.005)


@asynccontextmanager
async def a_sandbox(**limits):
    """A sandbox, of whose processes none may be left afterwards."""
    sandbox = Sandbox(MediaLimits(**{"media_decode_workers": 1, **limits}))
    try:
        yield sandbox
    finally:
        pids = sandbox.pids
        await sandbox.close()
        await sandbox.close()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "children or zombies are left"


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return {one for one in found if "memfd" in one or "socket" in one}


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:triptych-medium")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def started(sandbox: Sandbox) -> int:
    """The process of a sandbox that has one."""
    await sandbox.decode(medium(), ITEM)
    (pid,) = sandbox.pids
    return pid


async def stuck(sandbox: Sandbox) -> tuple[asyncio.Task, int]:
    """A job at a decoder that stands still."""
    pid = await started(sandbox)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: is_stopped(pid), "the decoder is stopped")
    task = asyncio.create_task(sandbox.decode(medium(), ITEM))
    await until(lambda: sandbox.counts.busy == 1, "the job is at the decoder")
    return task, pid


@pytest.mark.parametrize("size", [(16, 8), LARGE])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
async def test_a_picture_is_that_which_was_sent(size, format):
    async with a_sandbox() as sandbox:
        data = picture(format, *size)
        decoded = await sandbox.decode(medium(data), ITEM)
        assert (decoded.mode, decoded.size) == ("RGB", size)
        with Image.open(BytesIO(data)) as reference:
            assert decoded.tobytes() == reference.convert("RGB").tobytes()
        # What is done to a picture over shared memory does not reach that memory.
        half = decoded.resize((size[0] // 2, size[1] // 2))
        decoded.putpixel((0, 0), (1, 2, 3))
        assert (decoded.getpixel((0, 0)), half.size) == ((1, 2, 3), (size[0] // 2, size[1] // 2))


async def test_a_picture_larger_than_a_block_of_memory_is_whole():
    async with a_sandbox(media_max_pixels=80_000_000) as sandbox:
        size = (9000, 8000)
        decoded = await sandbox.decode(medium(picture("JPEG", *size)), ITEM)
        assert decoded.size == size
        corners = [decoded.getpixel(at) for at in ((9, 9), (8990, 9), (9, 7990), (8990, 7990))]
        assert np.abs(np.array(corners) - [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]).max() < 6


async def test_frames_and_samples_are_those_that_were_sent():
    async with a_sandbox() as sandbox:
        film = video(320, 240, frames=6, codec="mjpeg", container="avi")
        frames = await sandbox.decode(medium(film, "video", frame_indices=(0, 5)), ITEM)
        assert (frames.shape, frames.dtype) == ((2, 240, 320, 3), np.uint8)
        assert abs(frames[1].astype(int) - frame_pixels(5, 320, 240)).mean() < 12
        sound = tones(8)
        samples = await sandbox.decode(medium(encoded(sound, subtype="FLOAT"), "audio"), ITEM)
        np.testing.assert_allclose(samples, sound, atol=1e-6)
        for array in (frames, samples):
            assert array.nbytes > INLINE_BYTES
            array[0] = 1  # as torch wants to be able to
        short = await sandbox.decode(medium(encoded(sound[:160]), "audio"), ITEM)
        short[0] = 1


async def test_headers_are_read_as_they_are_in_this_process():
    async with a_sandbox() as sandbox:
        for kind, data in (("video", video()), ("audio", encoded(tones(20)))):
            assert await sandbox.inspect(kind, data, ITEM) == inspect(kind, data, MediaLimits(), ITEM)
        with pytest.raises(BadRequest, match="damaged") as caught:
            await sandbox.inspect("video", video()[:400], ITEM)
        assert (caught.value.param, caught.value.code) == (ITEM, "media_damaged")
        assert len(sandbox.pids) == 1


async def test_shared_memory_goes_with_the_last_reference():
    async with a_sandbox() as sandbox:
        before, held = mapped(), len(pixels._held)
        decoded = await sandbox.decode(medium(picture("PNG", *MIDDLING)), ITEM)
        samples = await sandbox.decode(medium(encoded(tones(8)), "audio"), ITEM)
        part = samples[10:20]
        assert (mapped(), len(pixels._held)) == (before + 2, held + 1)
        del decoded, samples
        await until(lambda: mapped() == before + 1, "the picture's memory is given back")
        del part
        await until(lambda: mapped() == before, "the sound's memory is given back")
        assert len(pixels._held) == held


def address(decoded: Image.Image) -> int:
    with pixels.address_of(decoded) as found:
        return found


async def test_memory_that_nobody_uses_any_more_is_filled_again():
    async with a_sandbox() as sandbox:

        async def decode(quality, size=LARGE):
            data = picture("JPEG", *size, quality=quality)
            decoded = await sandbox.decode(medium(data), ITEM)
            with Image.open(BytesIO(data)) as reference:
                assert decoded.tobytes() == reference.convert("RGB").tobytes()
            return decoded

        before = mapped()
        first = await decode(10)
        at = address(first)
        other = await decode(20)
        assert address(other) != at, "the first picture is in use"
        del first
        again = await decode(30)
        assert (address(again), mapped()) == (at, before + 2)
        del again
        assert address(await decode(40, (LARGE[0], LARGE[1] - 90))) == at, "a smaller one fits"
        small = await decode(50, (LARGE[0] // 2, LARGE[1]))
        assert address(small) != at, "so much for so little would be more than bounds know of"
        large = await decode(60, (LARGE[0], LARGE[1] + 90))
        assert address(large) != at


@pytest.mark.parametrize("size", [(160, 240), (640, 480)])
async def test_what_is_of_another_size_than_was_read_at_first_is_refused(size):
    async with a_sandbox() as sandbox:
        pid = await started(sandbox)
        film = video(320, 240, frames=6, codec="mjpeg", container="avi")
        with pytest.raises(BadRequest, match="of another size than was read of it at first"):
            await sandbox.decode(medium(film, "video", frame_indices=(0, 5), width=size[0], height=size[1]), ITEM)
        frames = await sandbox.decode(medium(film, "video", frame_indices=(0, 5), width=320, height=240), ITEM)
        assert frames.shape == (2, 240, 320, 3)
        assert sandbox.pids == [pid]


async def test_little_is_kept_for_the_next():
    async with a_sandbox() as sandbox:
        before = mapped()
        sizes = [(LARGE[0], LARGE[1] * times) for times in (1, 2, 3, 4)]
        made = [await sandbox.decode(medium(picture("JPEG", *size)), ITEM) for size in sizes]
        assert mapped() == before + len(sizes)
        bound = sum(width * height * PIXEL_BYTES for width, height in sizes[:2])
        with mock.patch.object(spare, "KEPT_BYTES", bound):
            made.clear()
            await until(lambda: mapped() < before + len(sizes), "memory is given back")
        os.kill(sandbox.pids[0], signal.SIGKILL)
        await until(lambda: mapped() == before, "what was kept for the decoder goes with it")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_decoder_that_dies_once_costs_no_medium(number):
    async with a_sandbox() as sandbox:
        task, pid = await stuck(sandbox)
        after = asyncio.create_task(sandbox.decode(medium(), ITEM))
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        assert [one.size for one in await asyncio.gather(task, after)] == [(16, 8)] * 2
        assert sandbox.pids != [pid]
        assert (sandbox.counts.retried, sandbox.counts.crashed, sandbox.counts.unavailable) == (1, 0, 0)
        assert (sandbox.counts.busy, sandbox.counts.waiting, sandbox.counts.workers) == (0, 0, 1)
        assert not Path(f"/proc/{pid}").exists(), "a zombie is left"


async def queued(sandbox: Sandbox) -> tuple[asyncio.Task, asyncio.Task, int]:
    """Two jobs at one decoder, which stands still at the first."""
    first, pid = await stuck(sandbox)
    second = asyncio.create_task(sandbox.decode(medium(picture("JPEG", 24, 16)), ITEM))
    (decoder,) = sandbox._decoders
    await until(lambda: decoder.jobs == 2, "the second job is there, too")
    assert (sandbox.counts.busy, sandbox.counts.waiting) == (1, 1)
    return first, second, pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_job_that_waits_at_a_decoder_survives_its_death(number):
    async with a_sandbox() as sandbox:
        first, second, pid = await queued(sandbox)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        assert (await first).size == (16, 8)
        assert (await second).size == (24, 16)
        assert (sandbox.counts.retried, sandbox.counts.busy, sandbox.counts.waiting) == (1, 0, 0)


async def test_the_time_of_a_job_that_waits_at_a_decoder_begins_with_its_turn():
    async with a_sandbox(media_decode_timeout_s=0.3) as sandbox:
        first, second, _ = await queued(sandbox)
        with pytest.raises(BadRequest, match="longer to decode"):
            await first
        assert (await second).size == (24, 16)
        assert sandbox.counts.timed_out == 1


async def test_the_answer_to_a_job_that_left_the_queue_goes_to_nobody():
    async with a_sandbox() as sandbox:
        first, second, pid = await queued(sandbox)
        second.cancel()
        await asyncio.wait([second])
        assert sandbox.counts.waiting == 0
        third = asyncio.create_task(sandbox.decode(medium(picture("JPEG", 40, 30)), ITEM))
        os.kill(pid, signal.SIGCONT)
        assert [one.size for one in await asyncio.gather(first, third)] == [(16, 8), (40, 30)]
        assert sandbox.pids == [pid]
        assert (sandbox.counts.busy, sandbox.counts.waiting) == (0, 0)


async def test_nobody_waits_behind_a_large_file():
    async with a_sandbox() as sandbox:
        pid = await started(sandbox)
        os.kill(pid, signal.SIGSTOP)
        large = asyncio.create_task(sandbox.decode(medium(picture("PNG", 16, 8) + bytes(INLINE_BYTES)), ITEM))
        await until(lambda: sandbox.counts.busy == 1, "it is at the decoder")
        small = asyncio.create_task(sandbox.decode(medium(), ITEM))
        await until(lambda: sandbox.counts.waiting == 1, "the other one waits")
        (decoder,) = sandbox._decoders
        assert decoder.jobs == 1
        os.kill(pid, signal.SIGCONT)
        assert [one.size for one in await asyncio.gather(large, small)] == [(16, 8)] * 2


async def test_a_decoder_that_dies_while_it_is_idle_costs_no_medium():
    async with a_sandbox() as sandbox:
        pid = await started(sandbox)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not next(iter(sandbox._decoders)).alive, "it is dead")
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
        assert sandbox.counts.crashed == 0
        assert pid not in sandbox.pids


async def test_a_decoder_that_hangs_is_killed_at_its_time_limit():
    async with a_sandbox(media_decode_timeout_s=0.3) as sandbox:
        task, pid = await stuck(sandbox)
        with pytest.raises(BadRequest, match=r"longer to decode than the limit of 0.3 s \(--media-decode-timeout-s\)"):
            await task
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
        assert sandbox.counts.timed_out == 1
        assert not Path(f"/proc/{pid}").exists()


async def test_what_needs_more_memory_than_allowed_is_refused_by_the_flag():
    async with a_sandbox(media_decode_memory_mib=128) as sandbox:
        data = picture("PNG", 6000, 6000)
        with pytest.raises(PayloadTooLarge, match=r"limit of 128 MiB \(--media-decode-memory-mib\)") as caught:
            await sandbox.decode(medium(data), ITEM)
        assert (caught.value.param, caught.value.code) == (ITEM, "media_decode_failed")
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
        assert (sandbox.counts.out_of_memory, sandbox.counts.crashed) == (1, 0)


async def test_a_video_for_whose_frames_ffmpeg_finds_no_memory():
    async with a_sandbox(media_decode_memory_mib=380) as sandbox:
        film = medium(film_of(picture("JPEG", 6000, 6000), 6000, 6000), "video", frame_indices=(0,))
        with pytest.raises(PayloadTooLarge, match="--media-decode-memory-mib"):
            await sandbox.decode(film, ITEM)
        assert sandbox.counts.out_of_memory == 1


async def test_no_memory_by_another_bound_of_the_library_is_damage():
    """FFmpeg says ENOMEM of too many tracks, too."""
    async with a_sandbox() as sandbox:
        assert (await sandbox.inspect("video", video(), ITEM))["num_frames"] == 12
        pids = sandbox.pids
        with pytest.raises(BadRequest, match="damaged"):
            await sandbox.inspect("video", with_tracks(video(), 100, b"\0\0\0\x08free" * 5000), ITEM)
        assert sandbox.pids == pids
        assert sandbox.counts.out_of_memory == 0


async def test_decoders_work_side_by_side_and_are_bounded():
    async with a_sandbox(media_decode_workers=3) as sandbox:
        await asyncio.gather(*(sandbox.decode(medium(picture("PNG", *LARGE)), ITEM) for _ in range(12)))
        assert 1 < len(sandbox.pids) <= 3


async def test_cancelling_drops_what_waits_and_hurries_what_runs():
    async with a_sandbox() as sandbox:
        running, pid = await stuck(sandbox)
        waiting = asyncio.create_task(sandbox.decode(medium(), ITEM))
        last = asyncio.create_task(sandbox.decode(medium(), ITEM))
        await until(lambda: sandbox.counts.waiting == 2, "two wait")
        waiting.cancel()
        await until(lambda: sandbox.counts.waiting == 1, "one of them waits no more")
        running.cancel()
        await asyncio.wait([running, waiting])
        assert (await last).size == (16, 8), "the time of a job that nobody waits for is short"
        assert not Path(f"/proc/{pid}").exists()


async def test_cancelling_does_not_give_an_answer_to_the_next():
    async with a_sandbox() as sandbox:
        await started(sandbox)
        large = medium(picture("PNG", *LARGE))
        for _ in range(20):  # a machine with other work may not look before it is done
            task = asyncio.create_task(sandbox.decode(large, ITEM))
            await until(lambda one=task: sandbox.counts.busy == 1 or one.done(), "it is at work")
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                break
        assert task.cancelled()
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)


async def test_close_ends_who_runs_and_who_waits():
    async with a_sandbox() as sandbox:
        running, _ = await stuck(sandbox)
        waiting = asyncio.create_task(sandbox.decode(medium(), ITEM))
        await until(lambda: sandbox.counts.waiting == 1, "one waits")
        await sandbox.close()
        results = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [type(one) for one in results] == [Unavailable] * 2
        with pytest.raises(Unavailable):
            await sandbox.decode(medium(), ITEM)


async def test_a_decoder_is_confined_and_knows_no_secret(monkeypatch):
    monkeypatch.setenv("TRIPTYCH_TOKEN", "secret-of-the-plane")
    async with a_sandbox(media_decode_memory_mib=512) as sandbox:
        pid = await started(sandbox)
        status = Path(f"/proc/{pid}/status").read_text()
        limits = {
            line[:25].strip(): line[25:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        assert "NoNewPrivs:\t1" in status
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert limits["Max address space"] == str(512 << 20)
        assert limits["Max core file size"] == "0"
        assert b"secret-of-the-plane" not in Path(f"/proc/{pid}/environ").read_bytes()
        opened = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert len([one for one in opened if one.startswith("socket:")]) == 1


async def test_a_decoder_has_nothing_of_its_parent_open():
    async with a_sandbox() as sandbox:
        ours, theirs = os.pipe()
        try:
            os.set_inheritable(theirs, True)  # as libraries leave it that are not Python's
            pid = await started(sandbox)
            pipe = os.readlink(f"/proc/self/fd/{theirs}")
            assert pipe not in [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
            assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1)] == ["/dev/null"] * 2
        finally:
            os.close(ours)
            os.close(theirs)


def test_what_cannot_be_started_is_said():
    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"], {}, 2)


def test_a_child_is_waited_for_by_many():
    child = spawn(["/bin/sh", "-c", "while :; do sleep 9; done"], {}, 0)
    child.kill()
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: child.wait(), range(4))) == {-signal.SIGKILL}
    child.kill()
    assert child.poll() == -signal.SIGKILL


@pytest.mark.parametrize("stuck", [False, True])
async def test_decoders_end_with_a_parent_that_is_killed(tmp_path, stuck):
    code = """
import asyncio, sys
from triptych.config.media import MediaLimits
from triptych.contracts.media import Picture
from triptych.media.sandbox.pool import Sandbox
from triptych.media.sandbox.spawn import spawn
async def main():
    sandbox = Sandbox(MediaLimits())
    data = open(sys.argv[1], "rb").read()
    await sandbox.decode(Picture(content_hash="", data=data), "image")
    print(*sandbox.pids, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    (tmp_path / "picture").write_bytes(picture())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path / "picture"), stdout=asyncio.subprocess.PIPE
    )
    pid = int(await process.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    if stuck:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    await process.wait()
    await until(lambda: is_gone(pid), "the decoder is gone")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
