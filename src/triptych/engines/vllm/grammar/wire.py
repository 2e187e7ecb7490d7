"""Defines the messages between a worker and the process that tries its grammars: frames of a length and msgpack."""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

LENGTH = struct.Struct("<I")
GRAMMAR_NICE = 5
"""Niceness of compiling grammars: the engine's steps, which streams wait for, come first. With a lower priority, beside
engines that take all cores, a grammar of one second takes ten, which is longer than its request may take."""
Outcome = Literal["sound", "invalid", "too_costly", "killed"]
"""``killed``: the trial ended for reasons of the machine, and says nothing of the grammar."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first message to the process, which answers with an empty frame once it can try grammars."""

    tokenizer: str
    """xgrammar's ``TokenizerInfo`` as its own JSON."""
    any_whitespace: bool
    separators: tuple[str, str] | None
    timeout_s: float
    """Time limit for one trial."""
    max_step_s: float
    """Maximum processor time that one token may take under a grammar."""
    memory_bytes: int
    """Maximum memory of a trial beyond that of the process."""
    threads: int


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """Orders a trial of ``schema``."""

    number: int
    schema: str
    """A JSON schema as JSON text."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Orders the end of the trial ``number``, if it runs; no verdict follows."""

    number: int


Order = Trial | Cancel


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a trial."""

    number: int = 0
    outcome: Outcome
    reason: str = ""
    compile_s: float = 0.0
    step_s: float = 0.0
    """Processor time of the costliest token of the trial, by which each step of the engine may take longer."""
    timed_out: bool = False


def frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
