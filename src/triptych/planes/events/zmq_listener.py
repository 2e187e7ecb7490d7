"""Listens for a ZMQ socket and limits its connections, which ZMQ itself cannot."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

MAX_CONNECTIONS = 256
"""The limit on connections. At the limit no more are accepted until some have ended."""
HANDSHAKE_S = 2.0
"""Time limit for a peer to prove that it may connect."""
_BACKLOG = 64
"""The limit on connections that the kernel has accepted and ZMQ has not, in addition."""
_A_TURN = 1024
"""The limit on messages of the monitor that are read before other tasks run."""
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
"""One instruction of the classic Berkeley Packet Filter: "return 0" drops the packet."""

log = logging.getLogger("triptych.events")


class BoundedListener:
    """Makes ``zmq_socket`` listen. At ``MAX_CONNECTIONS`` the kernel drops new clients, which then try again.

    Unbinding the socket instead would end the connections that it has. For one event loop.
    """

    def __init__(self, zmq_socket: zmq.Socket[bytes], address: str) -> None:
        """Listens at a free port of the numeric ``address``. Leaves nothing behind on OSError or zmq.ZMQError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._kernel = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
        self._kernel.setblocking(False)
        self.port = int(self._kernel.getsockname()[1])
        self.connections = 0
        self.is_open = True
        self._logged = False
        zmq_socket.set(zmq.IPV6, ":" in address)
        zmq_socket.set(zmq.HANDSHAKE_IVL, round(HANDSHAKE_S * 1000))
        zmq_socket.set(zmq.USE_FD, os.dup(self._kernel.fileno()))  # ZMQ closes it
        self._socket = zmq_socket
        self._monitor = zmq_socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        try:
            zmq_socket.bind(f"tcp://[{address}]:{self.port}" if ":" in address else f"tcp://{address}:{self.port}")
        except zmq.ZMQError:
            self.close()
            raise

    def fileno(self) -> int:
        """Returns a descriptor that is readable when ``look`` has something to do."""
        return int(self._monitor.fileno())

    def look(self) -> bool:
        """Counts the clients that came and went. Returns whether there may be more to count."""
        for _ in range(_A_TURN):
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                break
            self.connections += 1 if event == zmq.EVENT_ACCEPTED else -1
        else:
            return True
        if self.is_open != (self.connections < MAX_CONNECTIONS):
            self._turn()
        return False

    def _turn(self) -> None:
        """Opens the port, or closes it."""
        self.is_open = not self.is_open
        with suppress(OSError):  # a kernel without such filters limits nothing
            if self.is_open:
                self._kernel.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            else:
                program = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
                self._kernel.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        if not self.is_open and not self._logged:
            log.warning("the port of events has %d connections; more have to wait until some end", self.connections)
            self._logged = True

    def close(self) -> None:
        """Closes the listener. The ZMQ socket stays, and listens until it is closed."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._kernel.close()
