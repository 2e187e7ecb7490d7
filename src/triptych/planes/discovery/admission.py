"""Decides whether a worker may join those that are alive. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from triptych.aio.listeners import authority
from triptych.contracts.card import EmbeddingSpec, Instance, ModelCard


def refusal(instance: Instance, alive: Iterable[Instance]) -> str | None:
    """Explains, in one line, why ``instance`` cannot work beside the instances ``alive``; None if it can."""
    for other in alive:
        if other.id == instance.id:
            continue
        if other.name == instance.name:
            where = authority(other.host, other.port)
            return (
                f"a worker named {instance.name!r} is alive already (process {other.pid}, {where}); "
                "give this one another name with --instance-name"
            )
        if other.model.name != instance.model.name:
            continue
        if _is_another_checkpoint(other.model, instance.model):
            return (
                f"worker {other.name!r} serves another checkpoint as {instance.model.name!r}: tokenizer, template or "
                f"configs in its {other.model.path} are not those in {instance.model.path}; all workers of a model "
                "must serve the same version of it, so give this one another --served-model-name"
            )
        if shard := _differing(other, instance):
            return (
                f"worker {other.name!r} serves other weights as {instance.model.name!r}: {shard} in its "
                f"{other.model.path} is not that in {instance.model.path}; all workers of a model must serve the same "
                "version of it, so give this one another --served-model-name"
            )
        if _disagree(other.model.embedding, instance.model.embedding):
            return (
                f"worker {other.name!r} of model {instance.model.name!r} works with embeddings of "
                f"{_words(other.model.embedding)}, this one with {_words(instance.model.embedding)}: all workers of a "
                "model must serve the same version of it, with one dtype"
            )
    return None


def _is_another_checkpoint(card: ModelCard, other: ModelCard) -> bool:
    return bool(card.files_digest and other.files_digest) and card.files_digest != other.files_digest


def _differing(instance: Instance, other: Instance) -> str | None:
    """Returns a shard that both have with different content. A worker that only encodes need not have all shards."""
    theirs = dict(other.weights)
    return next((name for name, digest in instance.weights if theirs.get(name, digest) != digest), None)


def _disagree(spec: EmbeddingSpec | None, other: EmbeddingSpec | None) -> bool:
    return spec is not None and other is not None and spec != other


def _words(spec: EmbeddingSpec | None) -> str:
    return f"{spec.width} {spec.dtype} values a token" if spec else "none"
