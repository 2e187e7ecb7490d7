"""One request's media on their way: who gets the bytes, who an embedding, and who only the name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from msgspec.structs import replace

from triptych.contracts.card import Instance
from triptych.contracts.errors import MediaMissing
from triptych.contracts.media import Medium, PrecomputedEmbedding
from triptych.contracts.request import GenerateRequest
from triptych.contracts.stages import EncodedMedium, EncodeRequest, Release
from triptych.contracts.tensor import TensorHandle
from triptych.router.media_hints import MediaHints
from triptych.stages.calls import Calls, Name, StepFailed
from triptych.stages.compose import Step


class Supply:
    """Media of one request. What a worker is thought to hold is sent by name, until it says otherwise."""

    def __init__(self, request: GenerateRequest, calls: Calls, held: MediaHints, name: Name) -> None:
        self._request = request
        self._calls = calls
        self._held = held
        self._name = name
        self._encoded: dict[int, EncodedMedium] = {}
        self._leases: list[tuple[Instance, TensorHandle]] = []
        self._asked_for_more: list[str] = []
        """Instances that lacked something, as often as they said so."""
        self.names = [medium.content_hash for medium in request.media]
        self.precomputed = frozenset(
            medium.content_hash for medium in request.media if isinstance(medium, PrecomputedEmbedding)
        )

    def believed_at(self, instance: Instance, name: str) -> bool:
        """Whether ``instance`` is thought to hold what it needs of a medium; never again once it lacked one."""
        if not instance.keeps_media or instance.id in self._asked_for_more:
            return False
        return self._held.holds(instance.id, name)

    async def encode(self, steps: Iterable[Step]) -> None:
        """Have media encoded, at all workers of ``steps`` at once. Raises the first StepFailed."""
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
                raise next((one for one in failures.exceptions if isinstance(one, StepFailed)), failures) from None

    async def _encode(self, step: Step) -> None:
        instance = step.instance
        believed = {index for index in step.media if self.believed_at(instance, self.names[index])}
        fresh = len({self.names[index] for index in step.media if index not in believed})
        self._held.note(instance.id, (self.names[index] for index in step.media))
        try:
            await self._ask(step, believed, fresh)
        except StepFailed as failure:
            self._held.forget(instance.id, [self.names[index] for index in step.media])
            if not isinstance(failure.error, MediaMissing) or not believed:
                raise
            await self._ask(step, set(), len(step.media))
            self._held.note(instance.id, (self.names[index] for index in step.media))

    async def _ask(self, step: Step, by_name: set[int], weight: int) -> None:
        """One call; media in ``by_name`` go without their bytes, repeated ones go once."""
        indices = {self.names[index]: index for index in reversed(step.media)}
        media = [
            replace(self._request.media[index], data=b"") if index in by_name else self._request.media[index]
            for index in indices.values()
        ]
        request = EncodeRequest(id=self._request.id, model=self._request.model, media=media)
        answer = await self._calls.encode(step.instance, request, weight, self._name)
        made = {one.content_hash: one for one in answer.media}
        self._leases += [(step.instance, one.embedding) for one in answer.media if one.embedding]
        for index in step.media:
            self._encoded[index] = made[self.names[index]]

    def for_prefill(self, step: Step) -> list[Medium]:
        """The request's media as the instance that prefills them gets them."""
        return [self._as_sent(index, medium, step) for index, medium in enumerate(self._request.media)]

    def _as_sent(self, index: int, medium: Medium, step: Step) -> Medium:
        lacks_encoded = self._asked_for_more.count(step.instance.id) > 1
        if index in self._encoded and not lacks_encoded:
            return replace(medium, data=b"", embedding=self._encoded[index].embedding)
        if self.believed_at(step.instance, medium.content_hash):
            return replace(medium, data=b"")
        return medium

    def taken(self, instance: Instance) -> None:
        """``instance`` has what it needed of the media, and keeps it for a while."""
        self._leases.clear()
        if instance.keeps_media:
            self._held.note(instance.id, self.names)

    def more(self, instance: Instance) -> bool:
        """``instance`` lacked a medium: from now on it gets embeddings, and next time the bytes.

        False: it had all there is.
        """
        self._held.forget(instance.id, self.names)
        self._asked_for_more.append(instance.id)
        return self._asked_for_more.count(instance.id) <= 2

    def close(self) -> None:
        """Give back what nobody fetched."""
        self._give_back()

    def _give_back(self) -> None:
        by_owner: dict[str, tuple[Instance, list[TensorHandle]]] = {}
        for instance, handle in self._leases:
            by_owner.setdefault(instance.id, (instance, []))[1].append(handle)
        self._leases.clear()
        self._encoded.clear()
        for instance, handles in by_owner.values():
            self._calls.release(instance, Release(embeddings=handles))
