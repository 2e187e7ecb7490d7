"""Where processes listen, from the kernel, and what a stranger may send there."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

_UCX_MAGIC = struct.pack("<Q", 0xCAFEBABE12345678)
"""What UCX's TCP transport sends first (``UCT_TCP_MAGIC_NUMBER``)."""
UCX_POISON = _UCX_MAGIC + struct.pack("<BI", 16, 40) + bytes(40)
"""A message to UCX's TCP port that ends the process: an access to address 0."""


def tree(pid: int) -> set[int]:
    """``pid`` and all processes below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(tree(int(child)) for child in children))


def tcp(pid: int) -> set[str]:
    """Addresses at which the process, or one below it, listens on TCP."""
    shown = subprocess.run(["ss", "-Htlnp"], check=True, capture_output=True, text=True).stdout
    return {line.split()[3] for line in shown.splitlines() for one in tree(pid) if f"pid={one}," in line}


def datagram(pid: int) -> set[str]:
    """Abstract names at which it takes datagrams of any local user."""
    shown = subprocess.run(["ss", "-Hxanp"], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in shown.splitlines() if any(f"pid={one}," in line for one in tree(pid))]
    return {row[4] for row in rows if row[0] == "u_dgr" and row[4].startswith("@")}


def send_junk(addresses: set[str], names: set[str] = frozenset(), seed: int = 1) -> None:  # type: ignore[assignment]
    """Bytes of several kinds to each address and each name, each over a connection of its own."""
    chance = random.Random(seed)
    junk = [UCX_POISON, b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", chance.randbytes(300)]
    for address in addresses:
        host, _, port = address.rpartition(":")
        for one in junk:
            with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=0.1) as connection:
                connection.sendall(one)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):  # some never close it
                    pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for name in names:
            for one in junk * 40:
                with suppress(OSError):
                    sender.sendto(one, f"\0{name[1:]}")
