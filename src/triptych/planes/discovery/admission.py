"""Who may join those who are alive. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from triptych.contracts.card import EmbeddingSpec, Instance


def refusal(instance: Instance, alive: Iterable[Instance]) -> str | None:
    """Why ``instance`` cannot work beside those ``alive``, in one line; None: it may."""
    for other in alive:
        if other.id == instance.id:
            continue
        if other.name == instance.name:
            return (
                f"a worker named {instance.name!r} is alive already (process {other.pid}, {other.host}:{other.port}); "
                "give this one another name with --instance-name"
            )
        if other.model.name == instance.model.name and _disagree(other.model.embedding, instance.model.embedding):
            return (
                f"worker {other.name!r} of model {instance.model.name!r} works with embeddings of "
                f"{_words(other.model.embedding)}, this one with {_words(instance.model.embedding)}: all workers of a "
                "model must serve the same version of it, with one dtype"
            )
    return None


def _disagree(one: EmbeddingSpec | None, other: EmbeddingSpec | None) -> bool:
    return one is not None and other is not None and one != other


def _words(spec: EmbeddingSpec | None) -> str:
    return f"{spec.width} {spec.dtype} values a token" if spec else "none"
