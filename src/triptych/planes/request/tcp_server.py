"""Answers calls over TCP: the answering end of the request plane."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from contextlib import aclosing

import msgspec

from triptych.aio.listeners import bare, bind, is_loopback, refusal
from triptych.aio.reclaim import clear_traceback
from triptych.aio.tasks import TaskSet
from triptych.contracts.errors import ConfigError, NotFound, TooManyRequests, TriptychError, Unavailable, WorkerStopped
from triptych.planes.request import frames, handshake
from triptych.planes.request.base import Handler, Payload
from triptych.planes.request.connection import Connection
from triptych.planes.request.frames import FrameError, Type, pack, split_call
from triptych.planes.request.limits import USUAL, WireLimits
from triptych.planes.request.tls import SHUTDOWN_TIMEOUT_S

log = logging.getLogger("triptych.request")

_HELLO = msgspec.msgpack.Decoder(frames.Hello)
_ENCODER = msgspec.msgpack.Encoder()
_BROKEN = TriptychError("the worker failed on this request; its log has the cause")
_STOPPED = _ENCODER.encode(WorkerStopped("the worker was stopped before its answer was complete").to_wire())


class _ServerStream:
    """One call that is being answered: its task, and the number of frames that the client can take."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.credit = frames.WINDOW
        self.stands = False
        """Whether the call only watches this worker, and is no work."""
        self._room = asyncio.Event()

    def grant(self, count: int) -> None:
        self.credit += count
        self._room.set()

    async def room(self) -> None:
        while self.credit <= 0:
            self._room.clear()
            await self._room.wait()


class _ServerConnection(Connection):
    def __init__(self, server: TcpRequestServer) -> None:
        super().__init__(frames.HELLO_LIMIT_BYTES, server.limits)
        self._server = server
        self._greeted = False
        self._hello: frames.Hello | None = None
        self._nonce = handshake.nonce()
        self._streams: dict[int, _ServerStream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)
        self._server.make_room_for_hello(self)
        self._greeting = self._loop.call_later(self.limits.hello_s, self._give_up)

    def _give_up(self) -> None:
        self.warn(f"no hello within {self.limits.hello_s:g} s")
        self.abort()

    def on_frame(self, kind: int, stream: int, payload: Payload) -> None:
        if not self._greeted:
            self._greet(kind, payload)
        elif kind == Type.CALL:
            self._open(stream, payload)
        elif open_stream := self._streams.get(stream):
            if kind == Type.CREDIT:
                open_stream.grant(int.from_bytes(payload, "big"))
            elif kind == Type.CANCEL and open_stream.task is not None:
                open_stream.task.cancel()

    def _greet(self, kind: int, payload: Payload) -> None:
        """Takes HELLO, then PROOF. Without a token at this end, HELLO is enough."""
        if self._hello is None:
            self._hello = self._hello_in(kind, payload)
            if self._hello.nonce:
                challenge = frames.Challenge(self._nonce, self._proof("server", self._hello))
                self.send(pack(Type.CHALLENGE, 0, _ENCODER.encode(challenge)))
            if self._server.key is not None:
                if not self._hello.nonce:
                    raise FrameError("wrong or missing token")
                return
        elif kind != Type.PROOF or not handshake.is_right(bytes(payload), self._proof("client", self._hello)):
            raise FrameError("wrong or missing token")
        self._greeted = True
        self._server.ungreeted.pop(self, None)
        self._greeting.cancel()
        self.reader.limit_bytes = frames.FRAME_LIMIT_BYTES

    def _proof(self, role: handshake.Role, hello: frames.Hello) -> bytes:
        return handshake.proof(self._server.key, role, hello, self._nonce)

    def _hello_in(self, kind: int, payload: Payload) -> frames.Hello:
        if kind != Type.HELLO:
            raise FrameError("no hello")
        try:
            hello = _HELLO.decode(payload)
        except msgspec.MsgspecError:
            raise FrameError("malformed hello") from None
        if hello.version != frames.VERSION:
            raise FrameError(f"peer speaks version {hello.version}, this is version {frames.VERSION}")
        if hello.to not in ("", self._server.id):
            raise FrameError(f"it means the worker {hello.to}, this is {self._server.id}")
        return hello

    def _open(self, number: int, payload: Payload) -> None:
        if number in self._streams:
            raise FrameError(f"stream {number} opened twice")
        endpoint, request = split_call(payload)
        try:
            handler = self._server.handler(endpoint)
        except TriptychError as error:
            self.send(pack(Type.ERROR, number, _ENCODER.encode(error.to_wire())))
            return
        stream = self._streams[number] = _ServerStream()
        stream.stands = endpoint in self._server.standing
        self.send(pack(Type.TAKEN, number))
        stream.task = self._server.tasks_of(endpoint).spawn(
            self._serve(number, stream, handler, request), f"call {endpoint} {number}"
        )
        # Not at the end of ``_serve``, which never begins if the CANCEL came together with the CALL.
        stream.task.add_done_callback(lambda _: self._streams.pop(number, None))

    async def _serve(self, number: int, stream: _ServerStream, handler: Handler, request: Payload) -> None:
        await asyncio.sleep(0)  # lets TAKEN be sent before a handler that may end or block the process
        try:
            async with aclosing(handler(request)) as items:
                async for item in items:
                    if stream.credit <= 0:
                        await stream.room()
                    if self.congested:
                        await self.writable()
                    stream.credit -= 1
                    self.send(pack(Type.DATA, number, item))
            self.send(pack(Type.END, number))
        except TriptychError as error:
            clear_traceback(error)
            self.send(pack(Type.ERROR, number, _ENCODER.encode(error.to_wire())))
        except Exception as error:
            log.exception("call failed")
            clear_traceback(error)
            self.send(pack(Type.ERROR, number, _ENCODER.encode(_BROKEN.to_wire())))

    def dismiss(self) -> None:
        """Answers the calls that have not ended with an error, because this worker stops, and cancels them."""
        for number, stream in list(self._streams.items()):
            if stream.task is not None and not stream.stands:
                self.send(pack(Type.ERROR, number, _STOPPED))
                stream.task.cancel()

    def on_closed(self) -> None:
        self._greeting.cancel()
        self._server.connections.discard(self)
        self._server.ungreeted.pop(self, None)
        for stream in list(self._streams.values()):
            if stream.task is not None:
                stream.task.cancel()


class TcpRequestServer:
    """A ``RequestServer`` over TCP, with TLS if it is given a context for that.

    Raises ConfigError for an address off loopback without a token.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_in_flight: int,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        limits: WireLimits = USUAL,
    ) -> None:
        if token is None and not is_loopback(host):
            raise ConfigError(f"listening on {host} needs a shared token: set TRIPTYCH_TOKEN in every process")
        self._host, self._port = bare(host), port
        self.key = handshake.key_of(token)
        self._tls = tls
        self.limits = limits
        self._max_in_flight = max_in_flight
        self.id = ""
        self._handlers: dict[str, Handler] = {}
        self._listeners: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._draining = False
        self.connections: set[_ServerConnection] = set()
        self.ungreeted: OrderedDict[_ServerConnection, None] = OrderedDict()
        """The connections that have not introduced themselves, the oldest first."""
        self.standing: dict[str, Handler] = {}
        self._watchers = TaskSet()
        self.tasks = TaskSet()

    @property
    def speaks_tls(self) -> bool:
        return self._tls is not None

    async def start(
        self, handlers: dict[str, Handler], standing: dict[str, Handler] | None = None, *, id: str = ""
    ) -> tuple[str, int]:
        self._handlers, self.standing, self.id = handlers, standing or {}, id
        self.bind()
        port = int(self._listeners[0].getsockname()[1])
        try:
            for listener in self._listeners:
                self._servers.append(await self._listen(listener))
        except OSError as error:
            raise refusal(self._host, port, error) from error
        return self._host, port

    def bind(self) -> None:
        """Binds the address, unless that is done already. Raises ConfigError.

        It is called before the engine starts, which may take minutes, so that an address in use is found at once.
        """
        if not self._listeners:
            self._listeners = bind(self._host, self._port)

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: _ServerConnection(self),
            sock=listener,
            ssl=self._tls,
            ssl_handshake_timeout=self.limits.tls_handshake_s if self._tls else None,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S if self._tls else None,
        )

    def make_room_for_hello(self, new: _ServerConnection) -> None:
        """Closes the connection that has been without a hello for longest, if there are too many, to make room."""
        self.ungreeted[new] = None
        if len(self.ungreeted) > self.limits.max_ungreeted:
            oldest, _ = self.ungreeted.popitem(last=False)
            oldest.abort()

    def handler(self, endpoint: str) -> Handler:
        """Returns the handler for a new call. Raises the error that refuses the call."""
        if endpoint in self.standing:
            return self.standing[endpoint]
        if self._draining:
            raise Unavailable("the worker is shutting down", code="worker_draining", retry_after_s=1)
        if len(self.tasks) >= self._max_in_flight:
            raise TooManyRequests(
                f"the worker holds {self._max_in_flight} requests, its limit (--max-in-flight)",
                retry_after_s=1,
            )
        if endpoint not in self._handlers:
            raise NotFound(f"this worker has no endpoint {endpoint!r}")
        return self._handlers[endpoint]

    def tasks_of(self, endpoint: str) -> TaskSet:
        """Returns the tasks of the calls to an endpoint."""
        return self._watchers if endpoint in self.standing else self.tasks

    async def drain(self, timeout_s: float) -> None:
        self._draining = True
        for connection in list(self.connections):
            connection.send(pack(Type.LEAVING, 0))
        if not await self.tasks.wait_idle(timeout_s):
            log.warning("%d requests did not finish within %.1f s", len(self.tasks), timeout_s)
            for connection in list(self.connections):
                connection.dismiss()

    async def close(self) -> None:
        self._draining = True
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        await self._watchers.close()
        await self.tasks.close()
        for connection in list(self.connections):
            connection.close()
