"""Composes a plan from what a request needs and which instances are alive. Pure: no clock, no socket, no randomness."""

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
    """A call of a plan: the stages that one instance runs."""

    stages: str
    instance: Instance
    media: tuple[int, ...] = ()
    """Indices of the media to encode, where the stages are ``e`` alone."""

    def __str__(self) -> str:
        return f"{self.stages}@{self.instance.name}"


@dataclass(frozen=True)
class Plan:
    """The calls that answer a request. Steps of ``encode`` run side by side; the others follow in order."""

    encode: tuple[Step, ...]
    prefill: Step | None
    """The call that prefills, or None if the last step prefills too."""
    decode: Step
    """Streams the tokens."""

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.encode, *([self.prefill] if self.prefill else []), self.decode)

    @property
    def shape(self) -> str:
        """The stages of its calls, ``e/p/d``, as metrics label them."""
        return "/".join(dict.fromkeys(step.stages for step in self.steps))

    def __str__(self) -> str:
        return " ".join(map(str, self.steps))


@dataclass(frozen=True)
class Need:
    """The needs of a request, and what instances are believed to hold for it."""

    media: tuple[str, ...] = ()
    """Content hashes of the media, in order."""
    prefills_locally: Callable[[Instance], bool] = lambda instance: False
    """Whether an instance has so little of the prompt left to prefill that a hand-off is not worth its cost."""
    has_embedding: Callable[[Instance, str], bool] = lambda instance, name: False
    """Whether an instance is believed to hold the embedding of a medium, so that nothing is encoded for it."""
    precomputed: frozenset[str] = frozenset()
    """Content hashes of media that came as embeddings, and are not encoded."""
    encodes_cached: Callable[[Instance, str], bool] = lambda instance, name: False
    """Whether an encode worker is believed to hold the embedding of a medium: asking it again costs next to nothing."""


CallsInFlight = Callable[[str], int]
"""Returns the number of calls in flight at an instance, by its id."""


def stages_needed(*, has_media: bool) -> str:
    """Returns the stages of a request. ``has_media`` tells that it has media to encode, and not only embeddings."""
    return "epd" if has_media else "pd"


Choose = Callable[[str, Sequence[Instance]], Instance]
"""Chooses the instance of a pool that runs these stages."""


def plan(
    need: Need,
    instances: Iterable[Instance],
    load: CallsInFlight,
    avoid: Collection[str] = (),
    choose: Choose | None = None,
) -> Plan:
    """Returns the plan with the best instance of each pool.

    Each span runs its own stages where all spans of a mode are alive. Otherwise a worker runs a part of its span; if
    that is not possible either, a fallback runs stages outside of its span. ``choose`` takes an instance to decode
    first, then one of each other pool; None takes the least loaded. Media go to encode workers by their content.
    Instances in ``avoid`` are not considered. Raises Unavailable, which names the missing span.
    """
    stages = stages_needed(has_media=any(name not in need.precomputed for name in need.media))
    alive = [instance for instance in instances if instance.id not in avoid]
    routes = _best_routes(stages, alive)
    if not routes:
        raise Unavailable(_missing(stages, alive), code="no_worker", retry_after_s=RETRY_AFTER_S)
    choose = choose or (lambda _, pool: min(pool, key=lambda instance: (load(instance.id), instance.name)))
    route, last = _decoding(routes, load, choose)
    segments = _without_needless_calls(need, [stages for stages, _ in route], last)
    pools = dict(route)
    prefill = None
    if len(segments) > 1 and segments[-2] != "e":
        pool = [giver for giver in pools[segments[-2]] if _hands_over(giver, last)]
        prefill = Step(segments[-2], choose(segments[-2], pool))
    decode = Step(segments[-1], last)
    encode = _encode_steps(need, pools["e"], (prefill or decode).instance, load) if segments[0] == "e" else ()
    return Plan(encode, prefill, decode)


Route = list[tuple[str, list[Instance]]]
"""The calls of a plan in order: the stages of each, and the instances that can run them."""


def _decoding(routes: Sequence[Route], load: CallsInFlight, choose: Choose) -> tuple[Route, Instance]:
    """Returns the instance that decodes, and the route to it with the fewest calls.

    ``choose`` decides between instances that would run the same stages. Of its choices in different modes the least
    loaded one is taken.
    """
    pools: dict[str, dict[str, Instance]] = {}
    for route in routes:
        stages, pool = route[-1]
        pools.setdefault(stages, {}).update({instance.id: instance for instance in pool})
    chosen = [(stages, choose(stages, list(pool.values()))) for stages, pool in pools.items()]
    stages, last = min(chosen, key=lambda choice: (load(choice[1].id), choice[1].name))
    fitting = [route for route in routes if route[-1][0] == stages and last in route[-1][1]]
    return min(fitting, key=len), last


def _best_routes(stages: str, alive: Sequence[Instance]) -> list[Route]:
    """Returns the routes for ``stages`` that ask the least of instances beyond their own spans."""
    routes: list[tuple[int, Route]] = []
    for segments in _cuts(stages):
        calls = [(segment, *_pool(segment, stages, alive)) for segment in segments]
        if all(pool for _, pool, _ in calls):
            route = _that_hand_over([(segment, pool) for segment, pool, _ in calls])
            if all(pool for _, pool in route):
                routes.append((sum(cost for *_, cost in calls), route))
    least = min((cost for cost, _ in routes), default=0)
    return [route for cost, route in routes if cost == least]


@cache
def _cuts(stages: str) -> tuple[tuple[str, ...], ...]:
    """Returns every way to cut ``stages`` into calls: the four modes, without stages that are not needed.

    ``stages`` is one of a few strings, so that few results are kept.
    """
    cuts = [("".join(stage for stage in span if stage in stages) for span in mode.spans) for mode in Mode]
    return tuple(dict.fromkeys(tuple(part for part in cut if part) for cut in cuts))


def _pool(segment: str, stages: str, alive: Sequence[Instance]) -> tuple[list[Instance], int]:
    """Returns the instances that can run ``segment`` at the least cost, and that cost."""
    costs = [
        (cost, instance)
        for instance in alive
        if (cost := _cost(segment, stages, instance.span, instance.capable_span)) is not None
    ]
    least = min((cost for cost, _ in costs), default=0)
    return [instance for cost, instance in costs if cost == least], least


@cache
def _cost(segment: str, stages: str, span: Span, capable_span: Span) -> int | None:
    """Returns 0 if ``segment`` is just what a worker of ``span`` is for, and None if it cannot run it.

    A stage outside of its span costs more than any unused part of it. The last stage of its span decides what a worker
    answers with: embeddings, a KV cache or tokens.
    """
    if not capable_span.covers(segment) or span.last != segment[-1]:
        return None
    own = "".join(stage for stage in span.value if stage in stages)
    return 10 * sum(stage not in own for stage in segment) + (own != segment)


def _that_hand_over(route: Route) -> Route:
    """Returns ``route`` without the instances that have no partner to give the KV cache to, or to get it from."""
    if len(route) < 2 or route[-2][0] == "e":
        return route
    *before, (first, givers), (second, takers) = route
    return [
        *before,
        (first, [giver for giver in givers if any(_hands_over(giver, taker) for taker in takers)]),
        (second, [taker for taker in takers if any(_hands_over(giver, taker) for giver in givers)]),
    ]


def _hands_over(giver: Instance, taker: Instance) -> bool:
    """Returns whether ``taker`` can decode with the KV cache of ``giver``. An instance does not hand over to itself."""
    if giver.kv_link is None or taker.kv_link is None or giver.id == taker.id:
        return False
    return giver.kv_link.gives_to(taker.kv_link)


def _without_needless_calls(need: Need, segments: list[str], last: Instance) -> list[str]:
    """Joins the prefill to the decode where the decoding instance can prefill the little that is left by itself."""
    if len(segments) > 1 and segments[-2] != "e" and need.prefills_locally(last):
        joined = segments[-2] + segments[-1]
        if last.capable_span.covers(joined):
            segments = [*segments[:-2], joined]
    return segments


def _encode_steps(need: Need, pool: Sequence[Instance], target: Instance, load: CallsInFlight) -> tuple[Step, ...]:
    """Returns one step for each encode worker that gets media. A medium goes to a worker that holds it, or to its home
    by content."""
    by_name = {instance.name: instance for instance in pool}
    taken: dict[str, list[int]] = {}
    fresh: dict[str, int] = {}
    chosen: dict[str, str] = {}

    def loaded(name: str) -> int:
        return load(by_name[name].id) + fresh.get(name, 0)

    for index, content in enumerate(need.media):
        if content in need.precomputed or need.has_embedding(target, content):
            continue
        holder = chosen.get(content) or next(
            (instance.name for instance in pool if need.encodes_cached(instance, content)), None
        )
        if holder is None:
            holder = home(content, sorted(by_name), loaded)
            fresh[holder] = fresh.get(holder, 0) + 1
        chosen[content] = holder
        taken.setdefault(holder, []).append(index)
    return tuple(Step("e", by_name[name], tuple(media)) for name, media in sorted(taken.items()))


def missing_stages(stages: str, alive: Sequence[Instance]) -> str | None:
    """Explains why the instances alive cannot run ``stages``, naming the missing span. None if they can."""
    return None if _best_routes(stages, alive) else _missing(stages, alive)


def _missing(stages: str, alive: Sequence[Instance]) -> str:
    """Says what has to be started: the fewest workers that would complete a route for ``stages``."""
    if not alive:
        return f"no worker is alive for this model; start one with span {Mode.EPD.spans[0].value!r}"
    lacks = [[part for part in cut if not _pool(part, stages, alive)[0]] for cut in _cuts(stages)]
    least = min(lacks, key=lambda parts: (len(parts), len("".join(parts))))
    have = ", ".join(sorted({instance.span.value for instance in alive}))
    if not least:
        return (
            "the workers that prefill and those that decode cannot hand a KV cache over: they run different engines, "
            f"or their caches differ in protocol, sequence or layout (spans alive: {have})"
        )
    wanted = " and ".join(repr(part) for part in least)
    return f"no worker with span {wanted} (or one that contains it) is alive for this model; alive: {have}"
