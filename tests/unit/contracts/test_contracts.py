"""Wire types survive a round trip, and tolerate senders of other versions."""

import msgspec
import pytest

from support.instances import instance
from triptych.contracts import errors, tokens
from triptych.contracts.answer import Timing, TokenDelta, TokenLogprob
from triptych.contracts.card import Instance
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Guided, Sampling

ERRORS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.TriptychError)]


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_crosses_the_wire_as_itself(cls):
    sent = cls("what to do", param="field", code=cls.default_code or "some_code", retry_after_s=2.5)
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(sent.to_wire()), type=errors.WireError)
    got = errors.from_wire(wire)
    assert type(got) is cls
    assert (got.message, got.param, got.code, got.retry_after_s) == ("what to do", "field", sent.code, 2.5)
    assert str(got) == "what to do"


def test_statuses_are_distinct_except_the_lost_workers():
    by_code = (errors.WorkerLost, errors.WorkerSilent)
    statuses = [cls.status for cls in ERRORS if not issubclass(cls, by_code)]
    assert len(set(statuses)) == len(statuses)
    assert errors.WorkerLost.status == errors.Unavailable.status == 503


@pytest.mark.parametrize("cls", [errors.Unavailable, errors.WorkerLost, errors.TooManyRequests])
def test_errors_that_may_be_retried_say_when(cls):
    assert cls("later").retry_after_s == 1.0
    assert cls("later", retry_after_s=7).retry_after_s == 7


def test_an_unknown_status_is_an_internal_error():
    assert type(errors.from_wire(errors.WireError(599, "x"))) is errors.TriptychError
    assert errors.from_wire(errors.WireError(599, "x")).status == 500


REQUEST = GenerateRequest(
    id="r",
    model="m",
    token_ids=tokens.TokenIds([1, 2, 3]),
    sampling=Sampling(
        max_tokens=5,
        stop_token_ids=(7,),
        logit_bias={3: -1.0},
        guided=Guided("json_schema", "{}"),
        seed=-(1 << 63),
    ),
    media=[Picture(content_hash="ab", format="PNG", data=b"\0\xff", width=1, height=2)],
)
DELTA = TokenDelta([1, 2], "stop", 5, 4, [TokenLogprob(-0.5, [(1, -0.5)])], Timing(prefill_s=0.25), True)


@pytest.mark.parametrize("value", [REQUEST, DELTA, TokenDelta([9]), instance("w")])
def test_wire_types_survive_a_round_trip(value):
    data = msgspec.msgpack.encode(value, enc_hook=tokens.enc_hook)
    assert msgspec.msgpack.decode(data, type=type(value), dec_hook=tokens.dec_hook) == value


def test_deltas_of_older_and_newer_workers_decode():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([[5]]), type=TokenDelta) == TokenDelta([5])
    newer = [*msgspec.to_builtins(DELTA), "a new field"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(newer), type=TokenDelta) == DELTA


def test_an_instance_with_unknown_fields_decodes():
    newer = {**msgspec.to_builtins(instance("w")), "colour": "red"}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=Instance) == instance("w")
