"""Large frames cross a connection in pieces, whole and in order, and let the event loop turn meanwhile."""

import asyncio
import random

import pytest

from support.certificates import Authority
from triptych.aio.pace import PIECE_BYTES
from triptych.planes.request.connection import SCRATCH_BYTES, Connection
from triptych.planes.request.frames import FRAME_LIMIT_BYTES, HEADER, Type, pack
from triptych.planes.request.limits import WireLimits
from triptych.planes.request.tls import TlsFiles


class End(Connection):
    def __init__(self) -> None:
        super().__init__(FRAME_LIMIT_BYTES, WireLimits())
        self.got = []
        self.read_sizes = []
        self.done = asyncio.Event()

    def on_frame(self, kind, stream, payload):
        self.got.append((kind, stream, bytes(payload)))
        if kind == Type.END:
            self.done.set()

    def on_closed(self):
        self.done.set()

    def buffer_updated(self, nbytes):
        self.read_sizes.append(nbytes)
        super().buffer_updated(nbytes)


class Recorded:
    """A transport that notes what it is given."""

    def __init__(self, transport):
        self._transport = transport
        self.sizes = []

    def write(self, data):
        self.sizes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_no_piece_is_large_and_frames_come_whole(loop, tls, tmp_path):
    authority = Authority(tmp_path)
    files = TlsFiles(**authority.issue()._asdict(), ca=authority.ca)
    running = asyncio.get_running_loop()
    ends = []
    listening, calling = (files.for_listening(), files.for_calling()) if tls else (None, None)
    server = await running.create_server(lambda: ends.append(End()) or ends[-1], "127.0.0.1", 0, ssl=listening)
    _, ours = await running.create_connection(End, *server.sockets[0].getsockname()[:2], ssl=calling)
    recorded = ours._transport = Recorded(ours._transport)
    content = random.Random(3).randbytes(9_000_001)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for stream in range(3):
        ours.send(pack(Type.DATA, stream, b"small"))
        ours.send(HEADER.pack(len(content), Type.CALL, stream), content)
    ours.send(pack(Type.END, 9))
    await ours.writable()
    async with asyncio.timeout(20):
        await ends[0].done.wait()
    counting.cancel()
    small = [(Type.DATA, stream, b"small") for stream in range(3)]
    large = [(Type.CALL, stream, content) for stream in range(3)]
    expected = [frame for pair in zip(small, large, strict=True) for frame in pair]
    assert ends[0].got == [*expected, (Type.END, 9, b"")]
    assert max(recorded.sizes) <= PIECE_BYTES
    assert max(ends[0].read_sizes) <= max(PIECE_BYTES, SCRATCH_BYTES)
    assert turns > 27_000_000 / (1 << 20), "the loop turned between pieces"
    ours.abort()
    for end in ends:
        end.abort()
    server.close()
    await server.wait_closed()
