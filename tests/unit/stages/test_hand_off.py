"""The two hand-overs between a prefill and a decode, on a request plane of this test's own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from support.instances import instance
from support.loops import run
from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.errors import (
    BadRequest,
    KvLost,
    TooManyRequests,
    TriptychError,
    WorkerLost,
    WorkerSilent,
    WorkerUnreached,
)
from triptych.contracts.kv_events import Load
from triptych.contracts.kv_link import HandOff, KvLink
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.contracts.stages import PREFILL, RELEASE, PrefillAnswer
from triptych.contracts.tokens import TokenIds, dec_hook
from triptych.kv.prompt_keys import prompt_keys
from triptych.router.routing import PromptKeys
from triptych.stages import attempt, hand_off
from triptych.stages.dispatch import Dispatcher
from triptych.stages.stream import StepFailed

REQUEST = GenerateRequest(id="r", model="m", token_ids=TokenIds([1]), sampling=Sampling(max_tokens=100))
MEETING = KvLink(protocol="x", hand_off=HandOff.RENDEZVOUS, bootstrap="10.0.0.1:8998")
HANDING = KvLink(protocol="x")
GIVEN = PrefillAnswer(delta=TokenDelta([], prompt_tokens=9, cached_tokens=4, timing=Timing(prefill_s=2.0)))
KEPT = PrefillAnswer(
    delta=TokenDelta([5], prompt_tokens=9, cached_tokens=4, timing=Timing(prefill_s=2.0)),
    kv=KvHandle(protocol="x", request_id="r", params=b""),
)
LOST, UNREAD, BAD = WorkerLost("gone"), KvLost("nobody came"), BadRequest("no picture")
FULL, UNREACHED = TooManyRequests("full"), WorkerUnreached("no connection")
END = TokenDelta([8], "stop", prompt_tokens=1, timing=Timing(decode_s=1.0))
HANG, LATER = "hang", "later"


def silent(*, speaks: bool = False) -> WorkerSilent:
    error = WorkerSilent("silent")
    error.speaks = speaks
    return error


class Plane:
    """Workers by name. Each says, call for call, a list of words: answers, deltas, token ids, errors, ``hang``.

    ``+x`` tells all calls that ``x`` has happened, ``-x`` waits for that, ``later`` for some turns of the loop.
    """

    def __init__(self, **says: list[list[Any]]) -> None:
        self.says = says
        self.calls: list[Call] = []
        self.happened: dict[str, asyncio.Event] = {}

    def on_lost(self, told: object) -> None:
        """Connections do not break here: each call says by itself what became of it."""

    def is_silent(self, peer: object) -> bool:
        return False

    def call(self, peer: Any, endpoint: str, payload: Any, *, silence_s: float) -> Call:
        said = self.says[peer.id].pop(0) if endpoint != RELEASE else []
        self.calls.append(Call(self, peer.id, endpoint, payload, said, silence_s))
        return self.calls[-1]

    def called(self) -> list[str]:
        return [call.worker for call in self.calls if call.endpoint != RELEASE]

    def requests(self, worker: str) -> list[GenerateRequest]:
        return [call.request for call in self.calls if call.worker == worker and call.endpoint != RELEASE]


class Call:
    def __init__(
        self, plane: Plane, worker: str, endpoint: str, payload: Any, says: list[Any], silence_s: float
    ) -> None:
        self.plane, self.worker, self.endpoint, self.says = plane, worker, endpoint, iter(says)
        self.payload, self.silences = payload, [silence_s]
        self.taken = self.left = False

    @property
    def request(self) -> GenerateRequest:
        return msgspec.msgpack.decode(self.payload, type=GenerateRequest, dec_hook=dec_hook)

    def expect_within(self, silence_s: float) -> None:
        self.silences.append(silence_s)

    async def __aenter__(self) -> Call:
        self.taken = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> list[bytes]:
        await asyncio.sleep(0)
        for word in self.says:
            if isinstance(word, Exception):
                raise word
            if word == HANG:
                await asyncio.Event().wait()
            if word == LATER:
                for _ in range(8):
                    await asyncio.sleep(0)
                continue
            if isinstance(word, str):
                event = self.plane.happened.setdefault(word[1:], asyncio.Event())
                await event.wait() if word[0] == "-" else event.set()
                continue
            return [msgspec.msgpack.encode(TokenDelta([word]) if isinstance(word, int) else word)]
        raise StopAsyncIteration


class Outcome:
    """What came of one request to workers that are called after their spans: ``p1``, ``d``."""

    def __init__(self, link: KvLink = MEETING, request: GenerateRequest = REQUEST, **says: list[list[Any]]) -> None:
        self.plane = Plane(**says)
        self.deltas: list[TokenDelta] = []
        self.error: TriptychError | None = None
        self.plans: list[str] = []
        fleet = [instance(name, name.rstrip("12"), kv_link=link) for name in says]
        self.dispatcher = Dispatcher(self.plane, 1.0, resume_timeout_s=0.0)  # type: ignore[arg-type]

        async def main() -> None:
            begun = asyncio.get_running_loop().time()
            try:
                async for batch in self.dispatcher.run(
                    request, lambda: fleet, lambda plan: self.plans.append(str(plan))
                ):
                    self.deltas += batch
            except TriptychError as error:
                self.error = error
            self.took_s = asyncio.get_running_loop().time() - begun
            for _ in range(4):  # releases are sent in the background
                await asyncio.sleep(0)
            await self.dispatcher.close()

        run(main())
        assert all(self.dispatcher.load(one.id) == 0 for one in fleet), "whatever happened, the account is at zero"
        assert {self.dispatcher.routing._workload.of(one.id) for one in fleet} == {Load()}
        assert all(call.left for call in self.plane.calls), "every call was left"

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


def test_by_rendezvous_both_are_called_at_once_and_the_decode_says_all() -> None:
    medium = Picture(content_hash="red", format="PNG", data=b"\x01", width=3)
    outcome = Outcome(
        request=replace(REQUEST, media=[medium], prompt_tokens=9),
        ep=[["-decoding", GIVEN]],
        d=[["+decoding", TokenDelta([7], prompt_tokens=1), END]],
    )
    assert (outcome.tokens, outcome.error, sorted(outcome.plane.called())) == ([7, 8], None, ["d", "ep"])
    first, last = outcome.deltas
    assert (first.prompt_tokens, first.cached_tokens, last.prompt_tokens) == (9, 4, 0)
    assert last.timing == Timing(prefill_s=2.0, decode_s=1.0)
    [giving], [taking] = outcome.plane.requests("ep"), outcome.plane.requests("d")
    assert giving.give == taking.kv
    assert (giving.give.bootstrap, giving.give.number < 1 << 63) == ("10.0.0.1:8998", True)
    assert (bytes(giving.media[0].data), bytes(taking.media[0].data)) == (b"\x01", b"")
    silences = {call.worker: call.silences for call in outcome.plane.calls}
    assert silences == {"ep": [1.0], "d": [2.0, 1.0]}, "the decode waits for the prefill first"


@pytest.mark.parametrize(
    ("error", "anew"),
    [
        (LOST, "p@p2 d@d1"),
        (FULL, "p@p2 d@d1"),
        (UNREACHED, "p@p2 d@d1"),
        (silent(), "p@p2 d@d2"),
        (silent(speaks=True), "p@p2 d@d2"),
    ],
    ids=repr,
)
def test_a_prefill_that_fails_cancels_the_decode_and_both_meet_anew(error: TriptychError, anew: str) -> None:
    outcome = Outcome(p1=[["-waits", error]], p2=[[GIVEN]], d1=[["+waits", HANG], [7, END]], d2=[[7, END]])
    assert (outcome.tokens, outcome.error, outcome.plans[0]) == ([7, 8], None, "p@p1 d@d1")
    assert outcome.plans[1] == anew
    rooms = [request.give for name in ("p1", "p2") for request in outcome.plane.requests(name)]
    assert len(set(rooms)) == 2


@pytest.mark.parametrize("error", [LOST, FULL, UNREACHED], ids=repr)
def test_a_decode_that_fails_cancels_the_prefill(error: TriptychError) -> None:
    outcome = Outcome(p=[["+waits", HANG], [GIVEN]], d1=[["-waits", error]], d2=[[7, END]])
    assert (outcome.tokens, outcome.error, outcome.plans) == ([7, 8], None, ["p@p d@d1", "p@p d@d2"])


@pytest.mark.parametrize(
    ("prefill", "decode", "told"),
    [
        (["-missed", BAD], ["+missed", UNREAD], BAD),
        (["+missed", UNREAD], ["-missed", BAD], BAD),
        ([BAD], [HANG], BAD),
        ([HANG], [BAD], BAD),
    ],
)
def test_the_workers_own_error_is_told_and_not_that_the_cache_did_not_come(
    prefill: list[Any], decode: list[Any], told: TriptychError
) -> None:
    outcome = Outcome(p=[prefill], d=[decode])
    assert (outcome.tokens, outcome.error) == ([], told)
    assert outcome.took_s < hand_off.BLAME_S


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [(["+missed", UNREAD], ["-missed", UNREAD]), (["-missed", UNREAD], ["+missed", UNREAD])],
)
def test_a_cache_that_did_not_come_is_made_once_more_elsewhere(prefill: list[Any], decode: list[Any]) -> None:
    outcome = Outcome(p1=[prefill], p2=[[GIVEN]], d=[decode, [7, END]])
    assert (outcome.tokens, outcome.error, outcome.plans) == ([7, 8], None, ["p@p1 d@d", "p@p2 d@d"])
    assert outcome.took_s < hand_off.BLAME_S, "nobody waits when both have told"


def test_a_prefill_that_says_too_late_that_nobody_came_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_off, "BLAME_S", 0.02)
    monkeypatch.setattr(hand_off, "LATE_S", 0.2)
    outcome = Outcome(p=[["+missed", UNREAD]], d=[["-missed", LATER, 7, END]])
    assert (outcome.tokens, outcome.error, len(outcome.plans)) == ([7, 8], None, 1)


def test_a_cache_that_did_not_come_while_the_prefill_hangs_is_told_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hand_off, "BLAME_S", 0.02)
    outcome = Outcome(p1=[[HANG]], p2=[[GIVEN]], d=[[UNREAD], [7, END]])
    assert (outcome.tokens, outcome.error, outcome.plans[1]) == ([7, 8], None, "p@p2 d@d")


@pytest.mark.parametrize("end", [[LOST], [silent()], [HANG], []], ids=repr)
def test_what_becomes_of_the_prefill_after_the_first_tokens_changes_nothing(
    end: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_off, "LATE_S", 0.02)
    outcome = Outcome(p=[["-decoding", *end]], d=[["+decoding", TokenDelta([7], prompt_tokens=9), END]])
    assert (outcome.tokens, outcome.error, outcome.deltas[0].prompt_tokens) == ([7, 8], None, 9)
    assert len(outcome.plans) == 1


def test_a_decode_lost_after_tokens_goes_on_in_another_room_with_all_tokens_that_are_there() -> None:
    outcome = Outcome(p=[[GIVEN], [GIVEN]], d1=[[6, 7, LOST]], d2=[[END]])
    assert (outcome.tokens, outcome.error) == ([6, 7, 8], None)
    first, second = outcome.plane.requests("p")
    assert (first.generated_ids, second.generated_ids, outcome.plane.requests("d2")[0].generated_ids) == (
        [],
        [6, 7],
        [6, 7],
    )
    assert first.give != second.give == outcome.plane.requests("d2")[0].kv


@pytest.mark.parametrize(("prefill", "decode"), [([silent()], [HANG]), ([HANG], [silent()])], ids=["prefill", "decode"])
def test_when_both_ends_of_a_hand_over_wait_neither_is_blamed(prefill: list[Any], decode: list[Any]) -> None:
    """So the next attempt goes to two others, else to one other, and never to the same two."""
    others = {"p2": [[GIVEN]], "d2": [[7, END]]}
    for new in (["p2", "d2"], ["p2"], ["d2"]):
        says = {"p1": [prefill, [GIVEN]], "d1": [decode, [7, END]], **{name: others[name][:] for name in new}}
        outcome = Outcome(**says)
        assert (outcome.tokens, outcome.error) == ([7, 8], None)
        assert set(new) <= set(outcome.plane.called()[2:])
    alone = Outcome(p1=[prefill], d1=[decode])
    assert isinstance(alone.error, WorkerSilent)
    assert len(alone.plans) == 1


def test_a_decode_that_is_silent_after_the_prefill_was_answered_is_to_blame() -> None:
    outcome = Outcome(p1=[["+given", GIVEN], [GIVEN]], p2=[[GIVEN]], d1=[["-given", LATER, silent()]], d2=[[7, END]])
    assert outcome.plans == ["p@p1 d@d1", "p@p1 d@d2"], "the prefill is not doubted"
    assert outcome.dispatcher._excluded.at(time.monotonic()) == {"d1"}


def test_a_decode_that_ends_without_a_word_is_lost() -> None:
    outcome = Outcome(p=[[GIVEN], [GIVEN]], d1=[[]], d2=[[7, END]])
    assert (outcome.tokens, outcome.plans[1]) == ([7, 8], "p@p d@d2")


@pytest.mark.parametrize("link", [MEETING, HANDING], ids=["rendezvous", "prefill-first"])
@pytest.mark.parametrize("says", [{"p": [HANG], "d": [HANG]}, {"p": [KEPT], "d": [HANG]}], ids=["prefill", "decode"])
async def test_a_client_that_leaves_leaves_no_call(link: KvLink, says: dict[str, list[Any]]) -> None:
    plane = Plane(**{name: [words] for name, words in says.items()})
    dispatcher = Dispatcher(plane, 1.0)  # type: ignore[arg-type]
    fleet = [instance(name, name, kv_link=link) for name in says]

    async def ask() -> None:
        async for _ in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None):
            pass

    async def main() -> None:
        asking = asyncio.create_task(ask())
        for _ in range(8):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        for _ in range(8):
            await asyncio.sleep(0)
        assert all(call.left for call in plane.calls)
        released = [call for call in plane.calls if call.endpoint == RELEASE]
        assert len(released) == (link is HANDING and says["p"] == [KEPT]), "the cache that nobody read is given back"
        assert dispatcher.in_flight == 0
        await dispatcher.close()

    await main()


def test_prefill_first_passes_the_prefills_token_on_before_the_decode_begins() -> None:
    outcome = Outcome(HANDING, p=[[KEPT]], d=[[7, END]])
    assert (outcome.tokens, outcome.plane.called()) == ([5, 7, 8], ["p", "d"])
    assert outcome.plane.requests("d")[0].generated_ids == [5]
    assert [delta.timing for delta in outcome.deltas] == [None, None, Timing(prefill_s=2.0, decode_s=1.0)]
    assert RELEASE not in [call.endpoint for call in outcome.plane.calls], "the cache was read"
    assert next(call for call in outcome.plane.calls if call.endpoint == PREFILL).request.give is None
    timing = Timing(prefill_s=2.0)
    whole = Outcome(HANDING, p=[[PrefillAnswer(delta=TokenDelta([5], "stop", prompt_tokens=9, timing=timing))]], d=[])
    assert (whole.tokens, whole.plane.called()) == ([5], ["p"])
    assert whole.deltas[0].timing == timing


def test_prefill_first_without_a_token_leaves_the_first_one_to_the_decode() -> None:
    """Its engine must know all that was said to draw one."""
    silent_prefill = replace(KEPT, delta=replace(KEPT.delta, token_ids=[]))
    outcome = Outcome(HANDING, p=[[silent_prefill]], d=[[TokenDelta([7], prompt_tokens=1), END]])
    assert (outcome.tokens, outcome.error, len(outcome.deltas)) == ([7, 8], None, 2)
    assert (outcome.deltas[0].prompt_tokens, outcome.deltas[0].cached_tokens) == (9, 4)


def test_prefill_first_without_a_cache_is_the_end_only_where_the_answer_is_over() -> None:
    outcome = Outcome(HANDING, p=[[PrefillAnswer(delta=TokenDelta([5]))]], d=[])
    assert (outcome.tokens, outcome.error.status) == ([], 500)


def test_of_failures_at_once_a_workers_own_is_told() -> None:
    one, other = StepFailed(instance("p", "p"), BAD), StepFailed(instance("d", "d"), UNREAD)
    for failures in ([one, other], [other, one]):
        assert hand_off._cause(BaseExceptionGroup("both", failures)) is one
    assert hand_off._cause(BaseExceptionGroup("missed", [other])) is other
    unexpected = BaseExceptionGroup("a fault of this program", [ZeroDivisionError()])
    assert hand_off._cause(unexpected) is unexpected


LONG = replace(REQUEST, token_ids=TokenIds(range(40)))


@pytest.mark.parametrize(
    ("link", "says"),
    [
        (MEETING, {"p": [["+begun", "-decoding", GIVEN]], "d": [["-begun", "+decoding", 7, "-looked", END]]}),
        (MEETING, {"p": [["+begun", "-decoding", HANG]], "d": [["-begun", "+decoding", 7, "-looked", END]]}),
        (HANDING, {"p": [["+begun", KEPT]], "d": [[7, "-looked", END]]}),
        (HANDING, {"pd": [[7, "-looked", END]]}),
    ],
    ids=["rendezvous", "rendezvous without an answer", "prefill-first", "unsplit"],
)
def test_workers_load_is_counted_as_long_as_it_is_there(
    link: KvLink, says: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_off, "LATE_S", 0.02)
    plane, prompt = Plane(**says), PromptKeys(prompt_keys(LONG.token_ids))
    dispatcher = Dispatcher(plane, 1.0)  # type: ignore[arg-type]
    fleet = [instance(name, name, kv_link=link) for name in says]
    first, last = fleet[0], fleet[-1]
    loads = []
    begin = plane.call

    def call(peer: Any, *args: Any, **settings: Any) -> Call:
        loads.append((dispatcher.routing._workload.of(first.id), dispatcher.routing._workload.of(last.id)))
        return begin(peer, *args, **settings)

    plane.call = call  # type: ignore[method-assign]

    async def main() -> None:
        seen = 0
        async for batch in dispatcher.run(LONG, lambda: fleet, lambda plan: None, prompt):
            if batch[0].token_ids == [7]:
                seen = 1
                assert dispatcher.routing._workload.of(first.id).prefill_tokens == 0, "the prefill is over"
                assert dispatcher.routing._workload.of(last.id) == Load(kv_tokens=40, requests=1)
                held = {one.id: dispatcher.routing.held_tokens(one, prompt) for one in fleet}
                assert set(held.values()) == {32}, "both have computed or got the prompt"
                plane.happened.setdefault("looked", asyncio.Event()).set()
        assert seen
        await dispatcher.close()

    run(main())
    at_first, at_last = loads[0]
    assert at_first.prefill_tokens == 40
    assert (at_last.kv_tokens, at_last.requests) == (40, 1)
    assert {dispatcher.routing._workload.of(one.id) for one in fleet} == {Load()}


def test_what_an_answer_goes_on_with_is_prefilled_and_held_too() -> None:
    plane, loads = Plane(w1=[[6, 7, LOST]], w2=[[END]]), []
    dispatcher = Dispatcher(plane, 1.0)  # type: ignore[arg-type]
    fleet = [instance(name, "pd") for name in ("w1", "w2")]
    begin = plane.call

    def call(peer: Any, *args: Any, **settings: Any) -> Call:
        loads.append(dispatcher.routing._workload.of(peer.id))
        return begin(peer, *args, **settings)

    plane.call = call  # type: ignore[method-assign]

    async def main() -> None:
        prompt = PromptKeys(prompt_keys(LONG.token_ids))
        dispatcher.routing.prefilled(fleet[1], prompt, time.monotonic())
        async for _ in dispatcher.run(LONG, lambda: fleet if loads else fleet[:1], lambda plan: None, prompt):
            pass
        await dispatcher.close()

    run(main())
    assert loads == [Load(40, 40, 1), Load(40 - 32 + 2, 40 + 2, 1)]


def test_media_are_sent_by_what_the_worker_that_prefills_is_believed_to_hold() -> None:
    plane = Plane(ep=[[KEPT]], d=[[END]])
    dispatcher = Dispatcher(plane, 1.0)  # type: ignore[arg-type]
    dispatcher._media_hints.note("d", ["red"])
    fleet = [instance(name, name, kv_link=HANDING, keeps_media=True) for name in ("ep", "d")]
    medium = Picture(content_hash="red", format="PNG", data=b"\x01", width=3)

    async def main() -> None:
        async for _ in dispatcher.run(replace(REQUEST, media=[medium]), lambda: fleet, lambda plan: None):
            pass
        await dispatcher.close()

    run(main())
    assert bytes(plane.requests("ep")[0].media[0].data) == b"\x01"


def test_times_of_stages_add_up() -> None:
    assert attempt._sum(Timing(1, 2, 3, 4), Timing(10, 20, 30, 40)) == Timing(11, 22, 33, 44)


@pytest.mark.parametrize(
    "says",
    [{"p1": [["-end", LOST]], "p2": [[GIVEN]], "d": [[HANG], [7, END]]}, {"e1": [["-end", LOST]]}],
    ids=["rendezvous", "encode"],
)
async def test_a_client_that_leaves_as_a_worker_is_lost_has_left(says: dict[str, list[Any]]) -> None:
    """The error of the call in a task group hides that the request was cancelled."""
    encoding = "e1" in says
    plane = Plane(**says, **({"e2": [["+other", HANG]], "pd": [[END]]} if encoding else {}))
    dispatcher = Dispatcher(plane, 1.0)  # type: ignore[arg-type]
    fleet = [instance(name, name.rstrip("12"), kv_link=MEETING) for name in plane.says]
    media = [Picture(content_hash=f"{number}", format="PNG", data=b"x") for number in range(12 * encoding)]

    async def ask() -> None:
        async for _ in dispatcher.run(replace(REQUEST, media=media), lambda: fleet, lambda plan: None):
            pass

    asking = asyncio.create_task(ask())
    for _ in range(8):
        await asyncio.sleep(0)
    begun = len(plane.calls)
    plane.happened["end"].set()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert len(plane.calls) == begun == 2, "nobody else is asked"
    await dispatcher.close()
