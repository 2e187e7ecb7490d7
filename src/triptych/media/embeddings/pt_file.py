"""Converts one ``.pt`` file on standard input to safetensors on standard output.

It runs as ``python -m triptych.media.embeddings.pt_file MAX_BYTES``. The process lives for one file and holds nothing
else. Once torch is loaded it confines itself as decoders of other media do; then it reads the file, with
``weights_only``. Its exit status (``Status``) tells the outcome.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import warnings
from enum import IntEnum
from io import BytesIO
from typing import Any

from triptych.contracts.shortage import is_short
from triptych.media.embeddings.safetensors import DTYPES
from triptych.media.sandbox.confine import confine, there_is_memory
from triptych.media.sandbox.confinement import WEAK
from triptych.media.sandbox.readable import folders_for
from triptych.media.sandbox.wire import SHORT_STATUS

OLDEST_TORCH = (2, 6)
"""In older versions ``weights_only`` could be made to run code (CVE-2025-32434)."""
SPARE_BYTES = 512 << 20
"""Address space beside the file and what it becomes: unpickling, threads, allocator."""
COPIES = 4
"""Maximum number of copies of the file, and of the tensors in it, that are in memory at a time."""
CPU_S = 30
_PACKAGES = ("torch", "numpy")
_LAZY = ("torch._weights_only_unpickler",)
"""Modules that torch loads when it reads a file."""
HEADER_BYTES = 1 << 20


class Status(IntEnum):
    """The exit status of the process. With any other status, a limit or a signal ended it."""

    DONE = 0
    FAILED = 1
    """torch could not read the file."""
    REFUSED = 3
    """The content is not accepted; standard output holds one line that says why."""
    TOO_LARGE = 4
    NO_TORCH = 5
    WEAK = 6
    """The process could not be confined as required."""
    SHORT = SHORT_STATUS
    """The machine had not enough memory."""


class Refused(Exception):
    """Raised for content that is not accepted. The message is for users."""


class TooLarge(Exception):
    """The tensors take more bytes than is allowed."""


def main(max_bytes: int, required: bool = False) -> Status:
    """Confines this process, for good, and reads a file. With ``required`` it reads only if confined completely."""
    warnings.simplefilter("ignore")
    torch = _torch()
    if torch is None:
        return Status.NO_TORCH
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not get into the answer
    data = sys.stdin.buffer.read()
    if _confined(len(data), max_bytes) == WEAK and required:
        return Status.WEAK
    try:
        tensors = dense_tensors(torch.load(BytesIO(data), map_location="cpu", weights_only=True), torch)
        parts = safetensors_parts(tensors, max_bytes)
    except Refused as reason:
        _write(out, str(reason).encode())
        return Status.REFUSED
    except TooLarge:
        return Status.TOO_LARGE
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError) or "alloc" in str(error)
        return Status.SHORT if is_memory and not there_is_memory() else Status.FAILED
    try:
        for part in parts:
            _write(out, part)
    except OSError as error:
        return Status.SHORT if is_short(error) else Status.FAILED
    return Status.DONE


def dense_tensors(loaded: Any, torch: Any) -> dict[str, Any]:
    """Returns the tensors of what ``torch.load`` gave: one tensor, or a dictionary of them.

    Raises Refused for anything else.
    """
    found = {"embeds": loaded} if isinstance(loaded, torch.Tensor) else loaded
    if not isinstance(found, dict) or not found:
        raise Refused("the .pt file holds neither a tensor nor a dictionary of tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise Refused("the .pt file's dictionary must have names and tensors in it, and nothing else")
        if why := _what_is_wrong(tensor, torch):
            raise Refused(f"tensor {name[:64]!r} of the .pt file is {why}; it must be dense and contiguous, in memory")
    return {name: tensor.detach() for name, tensor in found.items()}


def safetensors_parts(tensors: dict[str, Any], max_bytes: int) -> list[bytes]:
    """Writes a safetensors file, in parts. Raises TooLarge, and Refused for a dtype that is not supported."""
    names = {ours: theirs for theirs, (ours, _) in DTYPES.items()}
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names:
            raise Refused(f"tensor {name[:64]!r} of the .pt file is of dtype {dtype}; read are {', '.join(names)}")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    if at > max_bytes or len(text) > HEADER_BYTES:
        raise TooLarge
    values = [
        ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) for tensor in tensors.values()
    ]
    return [len(text).to_bytes(8, "little"), text, *values]


def _what_is_wrong(tensor: Any, torch: Any) -> str:
    """Explains why a tensor is not accepted. Empty for a dense tensor whose values lie in memory in order."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return "of a class of its own"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return "a view"
    return ""


def _torch() -> Any:
    """Imports torch. Returns None if there is no version that reads such files safely."""
    try:
        import torch
    except ImportError:
        return None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch if version >= OLDEST_TORCH else None


def _confined(file_bytes: int, max_bytes: int) -> int:
    """Confines this process, and returns the level.

    The limit on memory leaves out what torch itself maps: that differs by build.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    memory_bytes = mapped + SPARE_BYTES + COPIES * (file_bytes + max_bytes)
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    bounds = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: int(used_s) + CPU_S,
        resource.RLIMIT_FSIZE: max_bytes + HEADER_BYTES + 8,
    }
    return confine(bounds, folders_for(_PACKAGES), _LAZY).level


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


if __name__ == "__main__":
    try:
        status = main(int(sys.argv[1]), required=sys.argv[2:] == ["required"])
    except Exception:  # the caller is told by the status alone
        status = Status.FAILED
    os._exit(status)  # nothing to clean up, and torch takes a while to
