"""Decides which requests are suspected of ending workers, and which go to no other. Pure: the caller gives the time.

A worker *falls* when it dies or goes silent without having announced that it leaves. Each request that it had taken and
not answered may be the cause. Such a request is a *suspect* until some worker answers it. Suspects are kept apart
(``stages.apart``), so that the next fall tells more: if exactly one of the requests at the second worker was a suspect
before, only it is common to two falls, and it is put in *quarantine*.

A request has a cryptographic name, made of its content and its tenant. In quarantine it has a sealed name, which other
frontends may know: nobody can find out by guessing and comparing which request it stands for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec

from triptych.contracts.request import GenerateRequest
from triptych.router.routing import PromptKeys

MAX_SUSPECTS = 4096
MAX_FALLEN = 1024
WAVE_S = 2.0
"""If another worker fell so shortly before, and the suspect was not there, the falls have another cause. This excuses
each suspect once, so that workers which are killed from outside, one after another, put no request in quarantine."""

_ENCODER = msgspec.msgpack.Encoder()


def name_of(request: GenerateRequest, prompt: PromptKeys, tenant: str) -> bytes:
    """Returns the name of a request's content and tenant: equal for repetitions of the request, and for all seeds."""
    sampling = msgspec.structs.replace(request.sampling, seed=None)
    content = (tenant, request.salt, request.model, sampling, [medium.content_hash for medium in request.media])
    digest = hashlib.sha256(_ENCODER.encode(content))
    digest.update(memoryview(prompt.tokens))
    return digest.digest()


class Naming:
    """Names one request, once and only when it is called."""

    __slots__ = ("_name", "_of")

    def __init__(self, request: GenerateRequest, prompt: PromptKeys, tenant: str) -> None:
        self._of = (request, prompt, tenant)
        self._name: bytes | None = None

    def __call__(self) -> bytes:
        if self._name is None:
            self._name = name_of(*self._of)
        return self._name


@dataclass
class _Record:
    """The record of one suspect."""

    until: float
    workers: set[str] = field(default_factory=set)
    """The workers that fell while the request was there."""
    excused: bool = False


class Suspects:
    """Keeps the suspects and the quarantine. Both are bounded in number, and every entry in time."""

    def __init__(
        self,
        keep_s: float,
        max_quarantined: int,
        max_suspects: int = MAX_SUSPECTS,
        seal: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """A request is suspect, or in quarantine, for ``keep_s``; 0 turns all of this off.

        ``seal`` makes of a request's name the one that all frontends know it by in quarantine.
        """
        self.seal = seal
        self._keep_s = keep_s
        self._max_quarantined, self._max_suspects = max_quarantined, max_suspects
        self._suspects: OrderedDict[bytes, _Record] = OrderedDict()
        self._quarantine: dict[bytes, float] = {}
        """The time at which each sealed name leaves the quarantine, in that order."""
        self._fallen: OrderedDict[str, float] = OrderedDict()
        """When each worker fell, by the first report. A second one may follow: a dead engine ends its process."""
        self.falls = 0

    @property
    def any(self) -> bool:
        """Returns whether there are suspects or a quarantine. While there are none, no request needs a name."""
        return bool(self._suspects or self._quarantine)

    @property
    def quarantined(self) -> int:
        return len(self._quarantine)

    @property
    def suspected(self) -> int:
        return len(self._suspects)

    def fell(self, worker: str, names: Collection[bytes], now: float) -> list[bytes]:
        """Takes note that ``worker`` fell while it had these requests. Returns those that are now in quarantine."""
        self.expire(now)
        self._note_fall(worker, now)
        if not self._keep_s:
            return []
        before = [name for name in set(names) if self._felled_another(name, worker)]
        for name in set(names):
            self._record(name, now).workers.add(worker)
        if len(before) != 1 or self._excused(before[0], now):
            return []
        self._put_away(before[0], now)
        return before

    def _note_fall(self, worker: str, now: float) -> None:
        if worker in self._fallen:
            return
        self.falls += 1
        self._fallen[worker] = now
        if len(self._fallen) > MAX_FALLEN:
            self._fallen.popitem(last=False)

    def _felled_another(self, name: bytes, worker: str) -> bool:
        record = self._suspects.get(name)
        return record is not None and bool(record.workers - {worker})

    def _record(self, name: bytes, now: float) -> _Record:
        record = self._suspects.setdefault(name, _Record(now))
        record.until = now + self._keep_s
        self._suspects.move_to_end(name)
        if len(self._suspects) > self._max_suspects:
            self._suspects.popitem(last=False)
        return record

    def _excused(self, name: bytes, now: float) -> bool:
        record = self._suspects[name]
        if record.excused:
            return False
        lately = takewhile(lambda fall: fall[1] >= now - WAVE_S, reversed(self._fallen.items()))
        record.excused = any(worker not in record.workers for worker, _ in lately)
        return record.excused

    def _put_away(self, name: bytes, now: float) -> None:
        self._suspects.pop(name, None)
        self.quarantine([(self.seal(name), self._keep_s)], now)

    def quarantine(self, sealed: Iterable[tuple[bytes, float]], now: float) -> None:
        """Refuses the requests of these sealed names, each for so many seconds, and no longer than for ``keep_s``."""
        if self._keep_s:
            untils = self._quarantine | {name: now + min(left_s, self._keep_s) for name, left_s in sealed}
            kept = sorted(untils.items(), key=lambda item: item[1])[-self._max_quarantined :]
            self._quarantine = dict(kept)

    def release(self, sealed: bytes) -> None:
        """Takes the request of this sealed name out of quarantine."""
        self._quarantine.pop(sealed, None)

    def quarantined_for(self, now: float) -> dict[bytes, float]:
        """Returns all sealed names in quarantine, each with the seconds that it has left."""
        self.expire(now)
        return {sealed: until - now for sealed, until in self._quarantine.items()}

    def answered(self, name: bytes) -> None:
        """Takes note that a worker has answered the request: it is no longer a suspect."""
        self._suspects.pop(name, None)

    def is_suspect(self, name: bytes) -> bool:
        return name in self._suspects

    def quarantine_s(self, name: bytes, now: float) -> float | None:
        """Returns for how many seconds this request is still refused, or None if it is not."""
        self.expire(now)
        until = self._quarantine.get(self.seal(name)) if self._quarantine else None
        return None if until is None else until - now

    def expire(self, now: float) -> None:
        """Drops the entries whose time is over. Both tables are in the order of that time."""
        while self._suspects and next(iter(self._suspects.values())).until <= now:
            self._suspects.popitem(last=False)
        while self._quarantine and next(iter(self._quarantine.values())) <= now:
            del self._quarantine[next(iter(self._quarantine))]
