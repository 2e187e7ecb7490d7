"""Finds out how the system can confine decoders, for the log at start and for metrics."""

from __future__ import annotations

import logging

from triptych.contracts.errors import ConfigError
from triptych.contracts.metric import Metric, gauge
from triptych.media.sandbox import landlock, seccomp
from triptych.media.sandbox.confinement import WEAK, Confinement

log = logging.getLogger("triptych.media")


def available() -> Confinement:
    """Asks the kernel how a child can be confined; changes nothing. Namespaces are known once a child has tried."""
    return Confinement(landlock=landlock.version(), seccomp=seccomp.is_available())


def check(offered: Confinement, required: bool) -> None:
    """Logs the confinement that the system offers. Raises ConfigError if it is weak and complete is ``required``."""
    if offered.level > WEAK:
        log.info("media are decoded in child processes confined by %s", offered)
        return
    reason = (
        f"decoders of media would be confined by {offered} only: this system has no seccomp filters for this "
        "architecture, so that a faulty decoder could reach the network, other processes and files"
    )
    if required:
        raise ConfigError(f"{reason} (--media-require-sandbox)")
    log.warning("%s", reason)


def metrics(held: Confinement) -> tuple[Metric, ...]:
    """Metrics of the weakest confinement that there is."""
    name = "triptych_media_sandbox_"
    return (
        gauge(
            name + "level",
            "How decoders of media are confined: 2 by Landlock and seccomp, 1 by seccomp, 0 by less.",
            held.level,
        ),
        gauge(name + "landlock_version", "Version of Landlock's interface; 0: none.", held.landlock),
    )
