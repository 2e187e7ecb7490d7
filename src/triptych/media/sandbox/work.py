"""Accounts for the jobs of decoders: each job on its way, and counts of their outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.aio.memory import close_elsewhere
from triptych.contracts.metric import Metric, counter, gauge
from triptych.media.sandbox.process import Decoder
from triptych.media.sandbox.verdict import Cause


@dataclass(eq=False)
class SandboxCounts:
    """Counts the outcomes of jobs, and the decoders."""

    workers: int = 0
    busy: int = 0
    waiting: int = 0
    crashed: int = 0
    timed_out: int = 0
    out_of_memory: int = 0
    retried: int = 0
    unavailable: int = 0

    def metrics(self) -> tuple[Metric, ...]:
        """Returns the counts as metrics."""
        name = "triptych_media_decode_"
        return (
            gauge(name + "workers", "Processes that read and decode media.", self.workers),
            gauge(name + "busy", "Decoders that work on a medium.", self.busy),
            gauge(name + "waiting", "Media that wait for a decoder.", self.waiting),
            counter(name + "crashed_total", "Media at which their decoder died.", self.crashed),
            counter(name + "timed_out_total", "Media whose decoding took too long.", self.timed_out),
            counter(
                name + "out_of_memory_total",
                "Media whose decoding needed more memory than it may have.",
                self.out_of_memory,
            ),
            counter(
                name + "retried_total",
                "Media tried in a second decoder, because the first failed or died.",
                self.retried,
            ),
            counter(
                name + "unavailable_total",
                "Media not decoded because the machine was short of memory or processes (503).",
                self.unavailable,
            ),
        )


@dataclass(eq=False)
class Work:
    """Tracks a job on its way. ``decoder`` is the one that has the job, once it has begun."""

    counts: SandboxCounts
    decoder: Decoder | None = None
    begun: bool = False
    wanted: bool = True
    """Whether somebody waits for its result."""
    fds: list[int] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    """Causes of the attempts that failed."""

    def begin(self) -> None:
        """Counts the job as one that runs."""
        self.begun = True
        self.counts.waiting -= 1
        self.counts.busy += 1

    def pause(self) -> None:
        """Counts the job as one that waits again."""
        if self.begun:
            self.begun = False
            self.counts.waiting += 1
            self.counts.busy -= 1

    def end(self) -> None:
        """Closes the job's descriptors, and counts it no longer."""
        for fd in self.fds:
            close_elsewhere(fd)
        self.pause()
        self.counts.waiting -= 1
