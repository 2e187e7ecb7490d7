"""Who is blamed for a medium that is not decoded, and what of a decoder's answer is believed."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from support.loops import until
from support.media_files import picture
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, Unavailable, WireError
from triptych.contracts.media import FILE_TYPES, Medium
from triptych.media.sandbox import believe, child, pool, process
from triptych.media.sandbox.pool import Sandbox
from triptych.media.sandbox.result import array_of, picture_of
from triptych.media.sandbox.verdict import Cause, Verdict, cause_of, verdict
from triptych.media.sandbox.wire import INLINE_BYTES, SHORT_STATUS, Done

LIAR = str(Path(__file__).parents[3] / "support" / "lying_decoder.py")
HONEST = process.COMMAND
ITEM = "messages[0].content[1].image_url"
LIMITS = MediaLimits(media_decode_workers=1)
SMALL, LARGE = picture("PNG", 16, 8), picture("PNG", 900, 700)
AGAIN, MEDIUM, MACHINE = Verdict.AGAIN, Verdict.MEDIUM, Verdict.MACHINE


def medium(data: bytes = SMALL, kind: str = "image", **fields) -> Medium:
    return FILE_TYPES[kind](content_hash="", data=data, **fields)


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        (["TIMED_OUT"], MEDIUM),
        (["EXHAUSTED"], MEDIUM),
        (["CRASHED"], AGAIN),
        (["DISBELIEVED"], AGAIN),
        (["KILLED"], AGAIN),
        (["SHORT"], AGAIN),
        (["CRASHED", "CRASHED"], MEDIUM),
        (["CRASHED", "DISBELIEVED"], MEDIUM),
        (["DISBELIEVED", "DISBELIEVED"], MEDIUM),
        (["KILLED", "KILLED"], MACHINE),
        (["SHORT", "SHORT"], MACHINE),
        (["SHORT", "KILLED"], MACHINE),
        (["KILLED", "CRASHED"], MACHINE),
        (["CRASHED", "KILLED"], MACHINE),
        (["CRASHED", "SHORT"], MACHINE),
        (["SHORT", "DISBELIEVED"], MACHINE),
        (["KILLED", "TIMED_OUT"], MEDIUM),
        (["SHORT", "EXHAUSTED"], MEDIUM),
    ],
)
def test_each_way_to_fail_is_blamed_on_its_cause(causes, expected):
    assert verdict([Cause[name] for name in causes]) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (-signal.SIGKILL, Cause.KILLED),
        (-signal.SIGTERM, Cause.KILLED),
        (-signal.SIGSEGV, Cause.CRASHED),
        (-signal.SIGABRT, Cause.CRASHED),
        (-signal.SIGSYS, Cause.CRASHED),
        (-signal.SIGXCPU, Cause.CRASHED),
        (-signal.SIGALRM, Cause.TIMED_OUT),
        (1, Cause.CRASHED),
        (0, Cause.CRASHED),
        (SHORT_STATUS, Cause.SHORT),
    ],
)
def test_how_a_decoder_ended(status, expected):
    assert cause_of(status) is expected


@asynccontextmanager
async def decoders(monkeypatch, commands, limits=LIMITS):
    """A sandbox whose first decoders are started by ``commands`` in turn, and the others honestly."""
    left = list(commands)
    spawn = process._spawn

    def next_one(limits):
        monkeypatch.setattr(process, "COMMAND", (LIAR, *left.pop(0)) if left else HONEST)
        return spawn(limits)

    monkeypatch.setattr(process, "_spawn", next_one)

    sandbox = Sandbox(limits)
    try:
        yield sandbox
    finally:
        await sandbox.close()
    assert (sandbox.counts.busy, sandbox.counts.waiting) == (0, 0)


MACHINES = ["is_killed", "is_short", "has_no_buffer", "does_not_start"]
MEDIA = ["crashes", "closes_and_stays"]


@pytest.mark.parametrize("how", MACHINES + MEDIA)
async def test_a_medium_that_fails_once_is_tried_in_another_decoder(monkeypatch, how):

    monkeypatch.setattr(process, "EXIT_S", 0.1)
    async with decoders(monkeypatch, [(how,)]) as sandbox:
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
        assert (sandbox.counts.retried, sandbox.counts.crashed, sandbox.counts.unavailable) == (1, 0, 0)


@pytest.mark.parametrize("how", [*((one, one) for one in MACHINES), ("crashes", "is_killed"), ("is_short", "crashes")])
async def test_a_failure_of_the_machine_is_not_blamed_on_the_medium(monkeypatch, how):
    async with decoders(monkeypatch, [(one,) for one in how]) as sandbox:
        with pytest.raises(Unavailable, match="short of memory or processes") as caught:
            await sandbox.decode(medium(), ITEM)
        assert (caught.value.param, caught.value.code) == (ITEM, "media_decoder_unavailable")
        assert caught.value.retry_after_s
        assert (sandbox.counts.retried, sandbox.counts.crashed, sandbox.counts.unavailable) == (1, 0, 1)


@pytest.mark.parametrize("how", MEDIA)
async def test_a_medium_that_fails_twice_by_itself_is_refused(monkeypatch, how):

    monkeypatch.setattr(process, "EXIT_S", 0.1)
    async with decoders(monkeypatch, [(how,)] * 2) as sandbox:
        with pytest.raises(BadRequest, match="made its decoder fail") as caught:
            await sandbox.decode(medium(), ITEM)
        assert (caught.value.param, caught.value.code) == (ITEM, "media_decode_failed")
        assert (sandbox.counts.retried, sandbox.counts.crashed, sandbox.counts.unavailable) == (1, 1, 0)
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)


@pytest.mark.parametrize("what", ["shared memory for a file", "memory for the result", "a thread"])
async def test_a_shortage_of_the_server_is_not_blamed_on_the_medium(monkeypatch, what):
    tried = []

    def refuse(*arguments):
        tried.append(arguments)
        raise (RuntimeError("can't start new thread") if what == "a thread" else OSError(12, "Cannot allocate memory"))

    if what == "shared memory for a file":
        monkeypatch.setattr(pool.shared, "filled", refuse)
    elif what == "memory for the result":
        monkeypatch.setattr("triptych.media.sandbox.shared.make", refuse)
    async with decoders(monkeypatch, []) as sandbox:
        if what == "a thread":
            monkeypatch.setattr(sandbox._threads, "submit", refuse)
        large = what == "shared memory for a file"
        with pytest.raises(Unavailable) as caught:
            await sandbox.decode(medium(LARGE + bytes(INLINE_BYTES if large else 0)), ITEM)
        assert caught.value.code == "media_decoder_unavailable"
        assert len(tried) == 2
        monkeypatch.undo()
        assert (await sandbox.decode(medium(LARGE), ITEM)).size == (900, 700)


def lie(**fields) -> tuple[str, str]:
    return ("answers", msgspec.msgpack.encode(Done(**fields)).hex())


def error(**fields) -> tuple[str, str]:
    return lie(error=WireError(**{"status": 400, "message": "no", **fields}))


LIES = {
    "one byte for a huge picture": lie(shape=(20_000, 30_000), data=b"\0"),
    "no bytes": lie(shape=(8, 16)),
    "too few bytes": lie(shape=(8, 16), data=bytes(383)),
    "too many bytes": lie(shape=(8, 16), data=bytes(385)),
    "another shape of as many bytes": lie(shape=(16, 8), data=bytes(384)),
    "no shape": lie(data=bytes(384)),
    "a negative shape": lie(shape=(-8, -16), data=bytes(384)),
    "a third side": lie(shape=(8, 16, 1), data=bytes(384)),
    "an array of objects": lie(shape=(8, 16), dtype="object", data=bytes(1024)),
    "an array": lie(shape=(8, 16), dtype="uint8", data=bytes(128)),
    "in memory that was not lent": lie(shape=(8, 16), lent=True),
    "facts in the place of a picture": lie(facts={"format": "PNG", "width": 16, "height": 8}),
    "nothing": lie(),
    "a success that is an error": error(status=200),
    "an error of another kind": error(status=401),
    "an error that is none of its": error(code="shutting_down"),
    "an error about another field": error(param="model"),
    "no message": ("answers", "c1"),
    "another type": ("answers", msgspec.msgpack.encode({"shape": [8, 16]}).hex()),
    "too much": ("says_too_much",),
}


@pytest.mark.parametrize("name", [name for name, command in LIES.items() if command[0] == "answers"])
def test_what_cannot_be_is_not_believed(name):
    expected = believe.expected_of(medium(), LIMITS, ITEM)
    ask = pool._Ask("decode", medium(), ITEM, 0, lambda done, lent: believe.check_decoded(done, expected, lent))
    pool._check(ask, Done(shape=(8, 16), data=bytes(384)), 0)
    with pytest.raises((believe.Disbelieved, msgspec.MsgspecError)):
        pool._check(ask, msgspec.msgpack.decode(bytes.fromhex(LIES[name][1]), type=Done), 0)


@pytest.mark.parametrize(
    "name", ["one byte for a huge picture", "in memory that was not lent", "no message", "too much"]
)
async def test_a_lie_fails_its_medium_and_takes_no_memory(monkeypatch, name):
    async with decoders(monkeypatch, [LIES[name]] * 2) as sandbox:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(BadRequest, match="made its decoder fail") as caught:
            await sandbox.decode(medium(), ITEM)
        assert caught.value.code == "media_decode_failed"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 32 << 10, "memory was taken for a lie"
        assert sandbox.counts.crashed == 1


@pytest.mark.parametrize("how", ["answers_twice", "answers_unasked"])
async def test_a_decoder_that_speaks_unasked_is_ended(monkeypatch, how):
    async with decoders(monkeypatch, [(how,)]) as sandbox:
        if how == "answers_twice":
            assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
            (decoder,) = sandbox._decoders
            await until(lambda: not decoder.alive, "it is ended")
        assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)


async def test_no_descriptor_comes_from_a_decoder(monkeypatch):
    async with decoders(monkeypatch, [("sends_descriptors",)]) as sandbox:
        await sandbox.decode(medium(), ITEM)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert (await sandbox.decode(medium(), ITEM)).size == (16, 8)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_memory_that_is_lent_cannot_be_taken_away(monkeypatch):
    async with decoders(monkeypatch, [("shrinks",)]) as sandbox:
        decoded = await sandbox.decode(medium(LARGE), ITEM)
        assert decoded.tobytes() == bytes(900 * 700 * 3)
        assert sandbox.counts.retried == 0


def test_a_file_in_shared_memory_cannot_be_changed():
    fd = pool.shared.filled(b"x" * 4096)
    try:
        for change in (lambda: os.pwrite(fd, b"y", 0), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 8192)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


FACTS = {
    "video": {"format": "MP4", "width": 640, "height": 360, "num_frames": 24, "fps": 24.0},
    "audio": {"format": "WAV", "num_samples": 16_000, "sample_rate": 16_000},
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("video", {"format": "PNG"}),
        ("video", {"width": 2}),
        ("video", {"width": 10**9}),
        ("video", {"width": 640.0}),
        ("video", {"height": "360"}),
        ("video", {"num_frames": 0}),
        ("video", {"num_frames": -1}),
        ("video", {"num_frames": 10**12}),
        ("video", {"num_frames": True}),
        ("video", {"fps": 0.0}),
        ("video", {"fps": float("nan")}),
        ("video", {"fps": float("inf")}),
        ("video", {"fps": 1e-9}),
        ("video", {"fps": 24}),
        ("video", {"data": "x"}),
        ("audio", {"format": "AVI"}),
        ("audio", {"num_samples": 0}),
        ("audio", {"num_samples": 10**15}),
        ("audio", {"sample_rate": 0}),
        ("audio", {"sample_rate": 10**9}),
        ("audio", {"content_hash": "x"}),
    ],
)
def test_facts_of_no_medium_are_not_believed(kind, changes):
    believe.check_facts(FACTS[kind], kind, LIMITS)
    with pytest.raises(believe.Disbelieved):
        believe.check_facts({**FACTS[kind], **changes}, kind, LIMITS)
    with pytest.raises(believe.Disbelieved):
        believe.check_facts({}, kind, LIMITS)


def test_an_error_is_told_in_one_readable_line():
    told = believe.checked_error(WireError(400, f"{ITEM}: \x1b[2J\n" + "x" * 10_000, ITEM, "media_damaged", 9.0), ITEM)
    assert told.message.startswith(f"{ITEM}:  [2J x")
    assert len(told.message) == believe.MAX_MESSAGE_CHARS
    assert told.retry_after_s is None


def test_whatever_is_believed_can_be_taken_over():
    """Answers that are right but for some bytes: refused, or of the size that was expected."""
    chance = random.Random(5)
    film = medium(b"x", "video", frame_indices=(0, 1), width=8, height=6)
    sound = medium(b"x", "audio", num_samples=50, sample_rate=16_000)
    right = [
        (medium(), Done(shape=(8, 16), data=bytes(384))),
        (film, Done(shape=(2, 6, 8, 3), dtype="uint8", data=bytes(288))),
        (sound, Done(shape=(50,), dtype="float32", data=bytes(200))),
    ]
    decoder, taken, refused = msgspec.msgpack.Decoder(Done), 0, 0
    for round in range(6000):
        given, done = right[round % 3]
        message = bytearray(msgspec.msgpack.encode(done))
        for _ in range(chance.randint(1, 3)):
            message[chance.randrange(40) if chance.random() < 0.8 else chance.randrange(len(message))] = (
                chance.randrange(256)
            )
        expected = believe.expected_of(given, LIMITS, ITEM)
        try:
            answer = decoder.decode(message)
            if answer.error is not None or answer.exhausted or answer.short:
                continue
            believe.check_decoded(answer, expected, 0)
        except (msgspec.MsgspecError, believe.Disbelieved):
            refused += 1
            continue
        made = (array_of if answer.dtype else picture_of)(answer, None)
        size = made.shape if isinstance(made, np.ndarray) else (made.height, made.width)
        assert size == expected.shape
        taken += 1
    assert taken > 100
    assert refused > 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (medium(LARGE), ((700, 900), "", 900 * 700 * 4)),
        (medium(b"", width=20, height=10), ((10, 20), "", 800)),
        (medium(b"x", "video", frame_indices=(0, 1), width=8, height=6), ((2, 6, 8, 3), "uint8", 288)),
        (medium(b"x", "video", frame_indices=(0, 1)), ((2, 0, 0, 3), "uint8", 1500)),
        (medium(b"x", "video", frame_indices=(0, 1), width=800, height=600), ((2, 600, 800, 3), "uint8", 1500)),
        (medium(b"x", "audio", num_samples=100, sample_rate=16_000, decode_rate=8_000), ((50,), "float32", 200)),
        (medium(b"x", "audio", decode_rate=8_000), ((0,), "float32", 2 * 8_000 * 4)),
        (medium(b"x", "audio"), ((0,), "float32", 2 * 192_000 * 4)),
    ],
)
def test_what_a_medium_becomes_is_bounded_before_it_is_decoded(given, expected):
    assert believe.expected_of(given, MediaLimits(media_max_video_pixels=500, media_max_audio_s=2.0), ITEM) == expected


async def test_nothing_is_tried_again_for_nobody(monkeypatch):
    async with decoders(monkeypatch, [("closes_and_stays",)]) as sandbox:
        task = asyncio.create_task(sandbox.decode(medium(), ITEM))
        await until(lambda: sandbox.counts.busy == 1, "it is at the decoder")
        os.kill(sandbox.pids[0], signal.SIGSTOP)
        task.cancel()
        await asyncio.wait([task])
        os.kill(sandbox.pids[0], signal.SIGKILL)
        await until(lambda: not sandbox.counts.busy, "it is over")
        assert sandbox.counts.retried == 0


async def test_an_error_of_the_decoders_own_is_in_the_log(monkeypatch, caplog):
    code = "from triptych.media.sandbox import child; child._DECODE[child.Picture] = lambda *_: 1 / 0; child.main()"

    monkeypatch.setattr(process, "COMMAND", ("-c", code))
    sandbox = Sandbox(LIMITS)
    try:
        with pytest.raises(BadRequest, match="the picture made its decoder fail") as caught:
            await sandbox.decode(medium(), ITEM)
        assert "ZeroDivision" not in caught.value.message
    finally:
        await sandbox.close()
    assert caplog.text.count("ZeroDivisionError: division by zero") == 2


async def test_a_decoder_that_may_have_kept_too_much_is_replaced(monkeypatch):
    monkeypatch.setattr("triptych.media.sandbox.spare.LEAST_BYTES", 1)
    monkeypatch.setattr("triptych.media.sandbox.spare.KEPT_BYTES", 1)
    pids = []
    async with decoders(monkeypatch, [], MediaLimits(media_decode_workers=1, media_decode_memory_mib=128)) as sandbox:
        for _ in range(60):
            await sandbox.decode(medium(LARGE), ITEM)  # 2.4 MiB of shared memory
            pids.append(sandbox.pids)
            if not sandbox.pids:
                break
        assert 128 // 2.6 < len(pids) < 60
        assert pids[0] == pids[-2] != []
        assert (await sandbox.decode(medium(LARGE), ITEM)).size == (900, 700)


class NoBuffer:
    """A socket for whose messages the machine has no buffer so many times."""

    def __init__(self, times):
        self.times, self.sent = times, []

    def sendmsg(self, parts):
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        self.sent += parts


def test_an_answer_for_which_there_is_no_buffer(monkeypatch):
    monkeypatch.setattr(child, "_PAUSES_S", (0, 0, 0))
    late, never, dead = NoBuffer(2), NoBuffer(3), NoBuffer(9)
    child._send(late, b"answer")
    assert late.sent == [b"answer"]
    child._send(never, b"answer")
    assert msgspec.msgpack.decode(never.sent[0], type=Done).short
    with pytest.raises(SystemExit) as caught:
        child._send(dead, b"answer")
    assert cause_of(caught.value.code) is Cause.SHORT


@pytest.mark.parametrize(
    ("error", "peak", "there_is_memory", "expected"),
    [
        (MemoryError(), 900, True, Done(exhausted=True)),
        (MemoryError(), 900, False, Done(exhausted=True)),
        (MemoryError(), 100, False, Done(short=True)),
        (MemoryError(), 100, True, Done(exhausted=True)),
        (ValueError(), 900, False, None),
    ],
)
def test_a_lack_of_memory_is_blamed_on_medium_or_machine(monkeypatch, error, peak, there_is_memory, expected):
    monkeypatch.setattr(child, "peak_bytes", lambda: peak)
    monkeypatch.setattr(child, "there_is_memory", lambda: there_is_memory)
    damage = BadRequest("damaged")
    damage.__context__ = error
    assert child._for_want_of_memory(damage, 1000, 200) == expected


def test_no_memory_for_ffmpeg_may_be_a_bound_of_its_own(monkeypatch):
    error = type("FFmpegMemoryError", (MemoryError,), {"errno": 12})()
    monkeypatch.setattr(child, "peak_bytes", lambda: 0)
    for there_is_memory, expected in ((True, None), (False, Done(short=True))):
        monkeypatch.setattr(child, "there_is_memory", lambda there=there_is_memory: there)
        assert child._for_want_of_memory(error, 4 << 30, 0) == expected
    assert child._for_want_of_memory(error, 1 << 30, 0) == Done(exhausted=True)
