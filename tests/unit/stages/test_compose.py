"""Plans, as a table: who is alive, what is needed, who is picked."""

import itertools

import pytest

from support.instances import instance
from triptych.contracts.errors import Unavailable
from triptych.contracts.kv_link import HandOff, KvLayout, KvLink
from triptych.contracts.spans import Span
from triptych.stages.compose import Need, missing_stages, plan, stages_needed

SPANS = [span.value for span in Span]


def fleet(text):
    """``a:epd b:pd>epd`` as instances; behind ``>`` stands what the instance is able to do."""
    made = []
    for word in text.split():
        name, _, spans = word.partition(":")
        span, _, capable = spans.partition(">")
        made.append(instance(name, span, capable_span=capable, keeps_media=True))
    return made


def planned(media, alive, load=None, avoid="", **need):
    load = load or {}
    return plan(Need(media=tuple(media), **need), fleet(alive), lambda name: load.get(name, 0), avoid.split())


TEXT, PICTURE = "", "x"


@pytest.mark.parametrize(
    ("media", "alive", "picked"),
    [
        # One mode alive.
        (PICTURE, "a:epd", "epd@a"),
        (TEXT, "a:epd", "pd@a"),
        (PICTURE, "e:e a:pd", "e@e pd@a"),
        (TEXT, "e:e a:pd", "pd@a"),
        (PICTURE, "a:ep d:d", "ep@a d@d"),
        (TEXT, "a:ep d:d", "p@a d@d"),
        (PICTURE, "e:e p:p d:d", "e@e p@p d@d"),
        (TEXT, "e:e p:p d:d", "p@p d@d"),
        # Nothing to encode: an encode worker is not missed.
        (TEXT, "a:pd", "pd@a"),
        (TEXT, "p:p d:d", "p@p d@d"),
        # Spans are not asked for more than they are for while others do it.
        (PICTURE, "e:e a:pd>epd", "e@e pd@a"),
        (PICTURE, "e:e p:p>ep d:d>epd", "e@e p@p d@d"),
        (TEXT, "p:p d:d>epd", "p@p d@d"),
        # A fallback takes the stages of a pool that is gone.
        (PICTURE, "a:pd>epd", "epd@a"),
        (PICTURE, "p:p>ep d:d>epd", "ep@p d@d"),
        (PICTURE, "e:e d:d>epd", "e@e pd@d"),
        (PICTURE, "d:d>epd", "epd@d"),
        (TEXT, "d:d>pd", "pd@d"),
        (TEXT, "e:e d:d>pd", "pd@d"),
        # A part of a span.
        (PICTURE, "a:ep b:pd", "ep@a d@b"),
        (PICTURE, "e:e b:epd", "epd@b"),
        (PICTURE, "a:ep b:pd>epd", "ep@a d@b"),
    ],
)
def test_the_way(media, alive, picked):
    assert str(planned(media, alive)) == picked


@pytest.mark.parametrize(
    ("media", "alive", "words"),
    [
        (PICTURE, "", "'epd'"),
        (PICTURE, "a:pd", "'e'"),
        (PICTURE, "e:e", "'pd'"),
        (PICTURE, "e:e p:p", "'d'"),
        (PICTURE, "e:e d:d", "'p'"),
        (PICTURE, "p:p d:d", "'e'"),
        (TEXT, "e:e", "'pd'"),
        (TEXT, "p:p", "'d'"),
        (TEXT, "d:d", "'p'"),
        (TEXT, "e:e a:ep", "'d'"),
    ],
)
def test_what_is_missing_is_named(media, alive, words):
    with pytest.raises(Unavailable, match=words) as caught:
        planned(media, alive)
    assert caught.value.code == "no_worker"
    assert caught.value.retry_after_s
    assert words in missing_stages(stages_needed(has_media=bool(media)), fleet(alive))


@pytest.mark.parametrize("alive", [c for n in range(7) for c in itertools.combinations(SPANS, n)], ids="+".join)
@pytest.mark.parametrize("media", [TEXT, PICTURE])
def test_every_combination_of_spans(alive, media):
    """A plan runs just the stages that are needed, each once, at workers whose span has them; or there is none."""
    stages = stages_needed(has_media=bool(media))
    text = " ".join(f"{span}1:{span} {span}2:{span}" for span in alive)
    covered = any(
        all(any(part in span and span[-1] == part[-1] for span in alive) for part in cut)
        for cut in ([stages], *([stages[:k], stages[k:]] for k in range(1, len(stages))), list(stages))
    )
    if not covered:
        assert missing_stages(stages, fleet(text)) is not None
        with pytest.raises(Unavailable):
            planned(media, text)
        return
    assert missing_stages(stages, fleet(text)) is None
    made = planned(media, text)
    assert "".join(step.stages for step in made.steps) == stages
    assert all(step.instance.span.covers(step.stages) for step in made.steps)
    assert len({step.instance.id for step in made.steps}) == len(made.steps)
    exact = (["epd"], ["e", "pd"], ["ep", "d"], ["e", "p", "d"])
    if media and any(set(cut) <= set(alive) for cut in exact):
        assert all(step.instance.span.value == step.stages for step in made.steps), "a complete mode is kept to"


def test_the_least_loaded_of_each_pool():
    alive = "e:e p1:p p2:p d1:d d2:d d3:d"
    assert str(planned(PICTURE, alive, {"p1": 1, "d1": 2, "d2": 1, "d3": 3})) == "e@e p@p2 d@d2"
    assert str(planned(PICTURE, "b:epd a:epd")) == "epd@a"


def test_two_modes_alive_share_the_load():
    alive = "e:e a:pd b:epd"
    assert str(planned(PICTURE, alive, {"a": 1})) == "epd@b"
    assert str(planned(PICTURE, alive, {"b": 1})) == "e@e pd@a"
    assert str(planned(TEXT, alive, {"a": 1})) == "pd@b"


def test_an_avoided_instance_counts_as_gone():
    assert str(planned(PICTURE, "e1:e e2:e a:pd", avoid="e1")) == "e@e2 pd@a"
    assert str(planned(PICTURE, "e:e a:pd>epd", avoid="e")) == "epd@a"
    with pytest.raises(Unavailable):
        planned(PICTURE, "a:epd", avoid="a")


NIXL = KvLink(protocol="nixl")
MEETING = KvLink(protocol="sglang", hand_off=HandOff.RENDEZVOUS, bootstrap="10.0.0.1:8998")


def laid_out(**layout):
    return KvLink(protocol="nixl", layout=KvLayout(**layout))


@pytest.mark.parametrize(
    ("giver", "taker", "can"),
    [
        (NIXL, NIXL, True),
        (NIXL, None, False),
        (None, NIXL, False),
        (None, None, False),
        (NIXL, KvLink(protocol="mooncake"), False),
        (NIXL, KvLink(protocol="nixl", hand_off=HandOff.RENDEZVOUS), False),
        (MEETING, KvLink(protocol="sglang", hand_off=HandOff.RENDEZVOUS), True),
        (KvLink(protocol="sglang", hand_off=HandOff.RENDEZVOUS), MEETING, False),
        (laid_out(dtype="bfloat16", tensor_parallel=2), laid_out(dtype="bfloat16", tensor_parallel=2), True),
        (laid_out(dtype="bfloat16"), laid_out(dtype="float16"), False),
        (laid_out(block_size=16), laid_out(block_size=32), False),
        (laid_out(tensor_parallel=1), laid_out(tensor_parallel=2), False),
        (laid_out(block_size=16), laid_out(dtype="float16"), True),
        (laid_out(tensor_parallel=2), laid_out(), True),
    ],
)
def test_only_those_whose_links_fit_hand_over(giver, taker, can):
    """Whatever their engines are called."""
    fleet = [instance("p", "p", engine="x", kv_link=giver), instance("d", "d", engine="y", kv_link=taker)]
    if can:
        assert str(plan(Need(), fleet, lambda name: 0)) == "p@p d@d"
        return
    with pytest.raises(Unavailable, match="cannot hand a KV cache over"):
        plan(Need(), fleet, lambda name: 0)


def test_only_engines_of_a_kind_hand_over():
    mixed = [instance("p", "p", kv_link=NIXL), instance("d", "d")]
    with pytest.raises(Unavailable, match="different engines"):
        plan(Need(), mixed, lambda name: 0)
    both = [*mixed, instance("p2", "p")]
    assert str(plan(Need(), both, lambda name: 9 if name == "p2" else 0)) == "p@p2 d@d"


def test_an_instance_without_a_kv_link_still_answers_whole_requests():
    alone = [instance("a", "ep"), instance("b", "pd", kv_link=None), instance("c", "epd", kv_link=None)]
    assert str(plan(Need(("x",)), alone, lambda name: 0)) == "epd@c"
    assert str(plan(Need(), alone[:2], lambda name: 0)) == "pd@b"


def test_media_go_to_the_encode_worker_that_is_their_home():
    alive = "e1:e e2:e e3:e a:pd"
    homes = {name: str(planned([name], alive).encode[0]) for name in map(str, range(60))}
    assert {str(planned([name], alive).encode[0]) for name in homes} == set(homes.values())
    assert all(str(planned([name], alive).encode[0]) == home for name, home in homes.items()), "always the same one"
    left = {name: str(planned([name], alive, avoid="e2").encode[0]) for name in homes}
    assert all(left[name] == home for name, home in homes.items() if home != "e@e2"), "others' homes stay"
    counts = [list(homes.values()).count(f"e@e{n}") for n in (1, 2, 3)]
    assert min(counts) > 8


def test_media_of_one_request_spread_over_their_homes_and_equal_ones_stay_together():
    made = planned(["x", "y", "x", "z", "w", "v"], "e1:e e2:e a:pd")
    indices = sorted(index for step in made.encode for index in step.media)
    assert indices == list(range(6))
    [with_x] = [step for step in made.encode if 0 in step.media]
    assert 2 in with_x.media


def test_an_overloaded_home_is_left_out_unless_it_holds_the_medium():
    alive = "e1:e e2:e a:pd"
    home = planned(["x"], alive).encode[0].instance.name
    other = {"e1": "e2", "e2": "e1"}[home]
    assert planned(["x"], alive, {home: 50}).encode[0].instance.name == other
    held = planned(["x"], alive, {home: 50}, encodes_cached=lambda one, name: one.name == home)
    assert held.encode[0].instance.name == home


def test_a_medium_whose_embedding_the_target_holds_is_not_encoded():
    made = planned(["x", "y"], "e:e a:pd", has_embedding=lambda one, name: name == "x")
    assert [step.media for step in made.encode] == [(1,)]
    assert str(planned(["x"], "e:e a:pd", has_embedding=lambda one, name: True)) == "pd@a"


def test_a_medium_that_came_as_its_embedding_is_not_encoded():
    for alive, picked in [
        ("e:e a:pd", "pd@a"),
        ("a:epd", "pd@a"),
        ("a:ep d:d", "p@a d@d"),
        ("e:e p:p d:d", "p@p d@d"),
        ("a:pd", "pd@a"),  # and nobody who encodes is missed
    ]:
        assert str(planned(["x"], alive, precomputed=frozenset("x"))) == picked
    mixed = planned(["x", "y", "x"], "e:e a:pd", precomputed=frozenset("x"))
    assert str(mixed) == "e@e pd@a"
    assert mixed.encode[0].media == (1,)
    assert str(planned(["x", "y"], "a:epd", precomputed=frozenset("x"))) == "epd@a"


@pytest.mark.parametrize(
    ("media", "alive", "picked"),
    [
        (TEXT, "p:p d:d>epd", "pd@d"),
        (PICTURE, "e:e p:p d:d>epd", "e@e pd@d"),
        (PICTURE, "a:ep d:d>epd", "epd@d"),
        (TEXT, "p:p d:d", "p@p d@d"),
        (TEXT, "a:pd", "pd@a"),
    ],
)
def test_little_to_prefill_stays_at_the_decode_worker_if_it_can(media, alive, picked):
    assert str(planned(media, alive, prefills_locally=lambda one: True)) == picked


def test_a_text_has_nothing_to_encode():
    assert stages_needed(has_media=False) == "pd"
    assert stages_needed(has_media=True) == "epd"


A_CACHE, B_CACHE = KvLink(protocol="a"), KvLink(protocol="b")


def test_the_least_loaded_decides_which_of_two_routes_to_decoders_is_gone() -> None:
    """Both end with ``d``, but each decoder reads the caches of one of them only."""
    alive = [
        instance("joined", "ep", kv_link=A_CACHE),
        instance("encoder", "e", kv_link=None),
        instance("prefiller", "p", kv_link=B_CACHE),
        instance("d-a", "d", kv_link=A_CACHE),
        instance("d-b", "d", kv_link=B_CACHE),
    ]
    for loaded, steps in (("d-b", ["joined", "d-a"]), ("d-a", ["encoder", "prefiller", "d-b"])):
        made = plan(Need(media=("x",)), alive, lambda id, loaded=loaded: int(id == loaded))
        assert [step.instance.id for step in (*made.encode, made.prefill, made.decode)] == steps


def test_the_route_with_fewer_calls_to_a_decoder_is_taken() -> None:
    assert str(planned(PICTURE, "e:e p:p a:ep d:d")) == str(planned(PICTURE, "a:ep d:d"))


def test_many_media_of_one_request_are_spread_over_encode_workers_evenly() -> None:
    """Also where all have one home: what a request sends there counts at once."""
    [home] = {planned(["x"], "e1:e e2:e d:pd").encode[0].instance.name}
    alike = [name for name in map(str, range(200)) if planned([name], "e1:e e2:e d:pd").encode[0].instance.name == home]
    counts = {step.instance.name: len(step.media) for step in planned(alike[:20], "e1:e e2:e d:pd").encode}
    assert sum(counts.values()) == 20
    assert counts[home] == 13, "1.25 times the average of 20 and one more"
    counts = {step.instance.name: len(step.media) for step in planned(alike[:3], "e1:e e2:e d:pd").encode}
    assert sorted(counts.values()) == [1, 2], "an idle worker counts as idle"
