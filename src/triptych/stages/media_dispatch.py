"""Sends the media of one request: to each instance by name, as an embedding, or as bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import IntEnum

from msgspec.structs import replace

from triptych.aio.tasks import check_cancelled
from triptych.contracts.card import Instance
from triptych.contracts.errors import MediaMissing
from triptych.contracts.media import Medium, PrecomputedEmbedding
from triptych.contracts.request import GenerateRequest
from triptych.contracts.stages import EncodedMedium, EncodeRequest, Release
from triptych.contracts.tensor import TensorHandle
from triptych.router.media_hints import MediaHints
from triptych.stages.calls import Calls, Name
from triptych.stages.compose import Step
from triptych.stages.stream import StepFailed


class Level(IntEnum):
    """The form in which a medium is sent. An instance that still lacks the medium gets the next level."""

    NAME = 0
    """The medium's name alone: the instance is thought to hold it."""
    EMBEDDING = 1
    """A handle to the medium's embedding if it was encoded; otherwise its bytes."""
    BYTES = 2


class MediaDispatch:
    """Has the media of one request encoded, and says how each instance gets them. Owns the leases of embeddings."""

    def __init__(self, request: GenerateRequest, calls: Calls, hints: MediaHints, name: Name) -> None:
        self._request = request
        self._calls = calls
        self._hints = hints
        self._name = name
        self._encoded: dict[int, EncodedMedium] = {}
        self._leases: list[tuple[Instance, TensorHandle]] = []
        self._levels: dict[str, Level] = {}
        """The level of each instance. An instance that is not in it is at ``NAME``."""
        self.names = [medium.content_hash for medium in request.media]
        self.precomputed = frozenset(
            medium.content_hash for medium in request.media if isinstance(medium, PrecomputedEmbedding)
        )

    def believed_at(self, instance: Instance, name: str) -> bool:
        """Returns whether ``instance`` is thought to hold what it needs of a medium. False if it ever lacked one."""
        if not instance.keeps_media or instance.id in self._levels:
            return False
        return self._hints.holds(instance.id, name)

    async def encode(self, steps: Iterable[Step]) -> None:
        """Has media encoded, at all workers of ``steps`` at once. Raises the first StepFailed."""
        self._give_back()
        steps = list(steps)
        if len(steps) == 1:
            await self._encode(steps[0])
        elif steps:
            try:
                async with asyncio.TaskGroup() as group:
                    for step in steps:
                        group.create_task(self._encode(step), name=f"encode at {step.instance.name}")
            except ExceptionGroup as failures:
                check_cancelled()
                raise next(
                    (failure for failure in failures.exceptions if isinstance(failure, StepFailed)), failures
                ) from None

    async def _encode(self, step: Step) -> None:
        instance = step.instance
        believed = {index for index in step.media if self.believed_at(instance, self.names[index])}
        fresh = len({self.names[index] for index in step.media if index not in believed})
        self._hints.note(instance.id, (self.names[index] for index in step.media))
        try:
            await self._ask(step, believed, fresh)
        except StepFailed as failure:
            self._hints.forget(instance.id, [self.names[index] for index in step.media])
            if not isinstance(failure.error, MediaMissing) or not believed:
                raise
            await self._ask(step, set(), len(step.media))
            self._hints.note(instance.id, (self.names[index] for index in step.media))

    async def _ask(self, step: Step, by_name: set[int], weight: int) -> None:
        """Makes one encode call. Media in ``by_name`` are sent without their bytes; a repeated medium is sent once."""
        indices = {self.names[index]: index for index in reversed(step.media)}
        media = [
            replace(self._request.media[index], data=b"") if index in by_name else self._request.media[index]
            for index in indices.values()
        ]
        request = EncodeRequest(id=self._request.id, model=self._request.model, media=media)
        answer = await self._calls.encode(step.instance, request, weight, self._name)
        made = {encoded.content_hash: encoded for encoded in answer.media}
        self._leases += [(step.instance, encoded.embedding) for encoded in answer.media if encoded.embedding]
        for index in step.media:
            self._encoded[index] = made[self.names[index]]

    def for_prefill(self, step: Step) -> list[Medium]:
        """Returns the request's media in the form in which the instance that prefills gets them."""
        return [self._as_sent(index, medium, step) for index, medium in enumerate(self._request.media)]

    def _as_sent(self, index: int, medium: Medium, step: Step) -> Medium:
        if index in self._encoded and self._levels.get(step.instance.id) is not Level.BYTES:
            return replace(medium, data=b"", embedding=self._encoded[index].embedding)
        if self.believed_at(step.instance, medium.content_hash):
            return replace(medium, data=b"")
        return medium

    def delivered(self, instance: Instance) -> None:
        """Notes that ``instance`` got what it needed of the media, and keeps it for a while."""
        self._leases.clear()
        if instance.keeps_media:
            self._hints.note(instance.id, self.names)

    def send_more(self, instance: Instance) -> bool:
        """Moves ``instance``, which lacked a medium, to the next level. Returns False if it got the bytes already."""
        self._hints.forget(instance.id, self.names)
        level = self._levels.get(instance.id, Level.NAME)
        if level is Level.BYTES:
            return False
        self._levels[instance.id] = Level(level + 1)
        return True

    def close(self) -> None:
        """Releases the embeddings that nobody fetched."""
        self._give_back()

    def _give_back(self) -> None:
        by_owner: dict[str, tuple[Instance, list[TensorHandle]]] = {}
        for instance, handle in self._leases:
            by_owner.setdefault(instance.id, (instance, []))[1].append(handle)
        self._leases.clear()
        self._encoded.clear()
        for instance, handles in by_owner.values():
            self._calls.release(instance, Release(embeddings=handles))
