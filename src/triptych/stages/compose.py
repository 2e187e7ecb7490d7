"""From what a request needs and who is alive to a plan. Pure: no clock, no socket, no chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from triptych.contracts.card import Instance
from triptych.contracts.errors import Unavailable
from triptych.contracts.spans import Mode, Span
from triptych.router.affinity import home

RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class Step:
    """Stages to run, in one call, at one instance."""

    stages: str
    instance: Instance
    media: tuple[int, ...] = ()
    """Which media of the request, where the stages are ``e`` alone."""

    def __str__(self) -> str:
        return f"{self.stages}@{self.instance.name}"


@dataclass(frozen=True)
class Plan:
    """The calls that answer a request. Steps of ``encode`` run side by side; the others follow in order."""

    encode: tuple[Step, ...]
    prefill: Step | None
    """None: the last step prefills too."""
    decode: Step
    """Streams the tokens."""

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.encode, *([self.prefill] if self.prefill else []), self.decode)

    @property
    def shape(self) -> str:
        """Stages of its calls, ``e/p/d``: what metrics count."""
        return "/".join(dict.fromkeys(step.stages for step in self.steps))

    def __str__(self) -> str:
        return " ".join(map(str, self.steps))


@dataclass(frozen=True)
class Need:
    """What decides how a request may go, beside who is alive."""

    media: tuple[str, ...] = ()
    """Names of the media's contents, in order."""
    prefills_locally: Callable[[Instance], bool] = lambda instance: False
    """Whether so little of the prompt is left to prefill at an instance that a hand-over is not worth it."""
    has_embedding: Callable[[Instance, str], bool] = lambda instance, name: False
    """Whether an instance is thought to hold a medium's embedding: nothing to encode for it."""
    precomputed: frozenset[str] = frozenset()
    """Names of media that came as their embeddings: nobody encodes them."""
    encodes_cached: Callable[[Instance, str], bool] = lambda instance, name: False
    """Whether an encode worker is thought to hold it: asking there again costs next to nothing."""


Load = Callable[[str], int]
"""Work in flight at an instance, by its id."""


def stages_needed(*, has_media: bool) -> str:
    """A request of texts, or with media that came as their embeddings only, has nothing to encode (``has_media``)."""
    return "epd" if has_media else "pd"


Choose = Callable[[str, Sequence[Instance]], Instance]
"""Who of a pool takes these stages."""


def plan(
    need: Need,
    instances: Iterable[Instance],
    load: Load,
    avoid: Collection[str] = (),
    choose: Choose | None = None,
) -> Plan:
    """The instances that answer a request, each the best of its pool.

    Spans do what they are there for where all of them are alive; else a worker whose span contains the stages
    takes part of its span; else one that is able to stands in. Of the instances that could decode ``choose`` takes
    one, then one of each other pool (None: the least loaded); media go to the encode workers by their content.
    Instances in ``avoid`` are out of the question. Raises Unavailable naming the span that is missing.
    """
    stages = stages_needed(has_media=any(name not in need.precomputed for name in need.media))
    alive = [one for one in instances if one.id not in avoid]
    ways = _best_ways(stages, alive)
    if not ways:
        raise Unavailable(_missing(stages, alive), code="no_worker", retry_after_s=RETRY_AFTER_S)
    choose = choose or (lambda _, pool: min(pool, key=lambda one: (load(one.id), one.name)))
    way, last = _last(ways, load, choose)
    segments = _without_needless_calls(need, [stages for stages, _ in way], last)
    pools = dict(way)
    prefill = None
    if len(segments) > 1 and segments[-2] != "e":
        pool = [one for one in pools[segments[-2]] if _hands_over(one, last)]
        prefill = Step(segments[-2], choose(segments[-2], pool))
    decode = Step(segments[-1], last)
    encode = _encode_steps(need, pools["e"], (prefill or decode).instance, load) if segments[0] == "e" else ()
    return Plan(encode, prefill, decode)


Way = list[tuple[str, list[Instance]]]
"""Stages of each call, and the instances that can take it."""


def _last(ways: Sequence[Way], load: Load, choose: Choose) -> tuple[Way, Instance]:
    """The instance that decodes, and the way that leads to it with the fewest calls.

    ``choose`` decides among those that would do the same; where modes are mixed, the least loaded of its choices.
    """
    pools: dict[str, dict[str, Instance]] = {}
    for way in ways:
        stages, pool = way[-1]
        pools.setdefault(stages, {}).update({one.id: one for one in pool})
    chosen = [(stages, choose(stages, list(pool.values()))) for stages, pool in pools.items()]
    stages, last = min(chosen, key=lambda one: (load(one[1].id), one[1].name))
    fitting = [way for way in ways if way[-1][0] == stages and last in way[-1][1]]
    return min(fitting, key=len), last


def _best_ways(stages: str, alive: Sequence[Instance]) -> list[Way]:
    """The ways to cut ``stages`` that put the least on instances outside of what they are there for."""
    ways: list[tuple[int, Way]] = []
    for segments in _cuts(stages):
        way = [(segment, *_pool(segment, stages, alive)) for segment in segments]
        if all(pool for _, pool, _ in way):
            chain = _joined([(segment, pool) for segment, pool, _ in way])
            if all(pool for _, pool in chain):
                ways.append((sum(cost for *_, cost in way), chain))
    least = min((cost for cost, _ in ways), default=0)
    return [way for cost, way in ways if cost == least]


@cache
def _cuts(stages: str) -> tuple[tuple[str, ...], ...]:
    """Every way to cut ``stages``, one of a few strings, into calls: the four modes, less what is not needed."""
    cuts = [("".join(stage for stage in span if stage in stages) for span in mode.spans) for mode in Mode]
    return tuple(dict.fromkeys(tuple(part for part in cut if part) for cut in cuts))


def _pool(segment: str, stages: str, alive: Sequence[Instance]) -> tuple[list[Instance], int]:
    """Those who can take ``segment`` at the least cost, and that cost. What a worker answers with is fixed by
    its span's last stage: embeddings, a KV cache or tokens."""
    costs = [(cost, one) for one in alive if (cost := _cost(segment, stages, one.span, one.capable_span)) is not None]
    least = min((cost for cost, _ in costs), default=0)
    return [one for cost, one in costs if cost == least], least


@cache
def _cost(segment: str, stages: str, span: Span, able: Span) -> int | None:
    """0: just what a worker of ``span`` is there for; None: it cannot take ``segment``.

    A stage outside of its span weighs more than any unused part of one.
    """
    if not able.covers(segment) or span.last != segment[-1]:
        return None
    own = "".join(stage for stage in span.value if stage in stages)
    return 10 * sum(stage not in own for stage in segment) + (own != segment)


def _joined(way: Way) -> Way:
    """``way`` without instances that have nobody to exchange the KV cache with."""
    if len(way) < 2 or way[-2][0] == "e":
        return way
    *before, (first, givers), (second, takers) = way
    return [
        *before,
        (first, [one for one in givers if any(_hands_over(one, other) for other in takers)]),
        (second, [one for one in takers if any(_hands_over(other, one) for other in givers)]),
    ]


def _hands_over(giver: Instance, taker: Instance) -> bool:
    """Whether ``taker`` can decode on the KV cache of ``giver``. Handing over to oneself is no split."""
    if giver.kv_link is None or taker.kv_link is None or giver.id == taker.id:
        return False
    return giver.kv_link.gives_to(taker.kv_link)


def _without_needless_calls(need: Need, segments: list[str], last: Instance) -> list[str]:
    """Fewer calls where the decoding instance can prefill the little that is left by itself."""
    if len(segments) > 1 and segments[-2] != "e" and need.prefills_locally(last):
        joined = segments[-2] + segments[-1]
        if last.capable_span.covers(joined):
            segments = [*segments[:-2], joined]
    return segments


def _encode_steps(need: Need, pool: Sequence[Instance], target: Instance, load: Load) -> tuple[Step, ...]:
    """One call to each encode worker that gets media: the one that holds it, else its home by content."""
    by_name = {one.name: one for one in pool}
    taken: dict[str, list[int]] = {}
    fresh: dict[str, int] = {}
    chosen: dict[str, str] = {}

    def loaded(name: str) -> int:
        return load(by_name[name].id) + fresh.get(name, 0)

    for index, content in enumerate(need.media):
        if content in need.precomputed or need.has_embedding(target, content):
            continue
        holder = chosen.get(content) or next((one.name for one in pool if need.encodes_cached(one, content)), None)
        if holder is None:
            holder = home(content, sorted(by_name), loaded)
            fresh[holder] = fresh.get(holder, 0) + 1
        chosen[content] = holder
        taken.setdefault(holder, []).append(index)
    return tuple(Step("e", by_name[name], tuple(media)) for name, media in sorted(taken.items()))


def gap(stages: str, alive: Sequence[Instance]) -> str | None:
    """Why ``stages`` cannot be run by those alive, naming the span that is missing; None: they can."""
    return None if _best_ways(stages, alive) else _missing(stages, alive)


def _missing(stages: str, alive: Sequence[Instance]) -> str:
    """What would have to be started, in words: the least that would complete a way for ``stages``."""
    if not alive:
        return f"no worker is alive for this model; start one with span {Mode.EPD.spans[0].value!r}"
    lacks = [[part for part in cut if not _pool(part, stages, alive)[0]] for cut in _cuts(stages)]
    least = min(lacks, key=lambda parts: (len(parts), len("".join(parts))))
    have = ", ".join(sorted({one.span.value for one in alive}))
    if not least:
        return (
            "the workers that prefill and those that decode cannot hand a KV cache over: they run different engines, "
            f"or their caches differ in protocol, sequence or layout (spans alive: {have})"
        )
    wanted = " and ".join(repr(part) for part in least)
    return f"no worker with span {wanted} (or one that contains it) is alive for this model; alive: {have}"
