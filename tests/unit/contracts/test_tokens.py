"""Tests token ids in one block of memory, here and on the wire."""

import random

import msgspec
import pytest

from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.tokens import TokenIds, dec_hook, enc_hook

ENCODER = msgspec.msgpack.Encoder(enc_hook=enc_hook)
DECODER = msgspec.msgpack.Decoder(GenerateRequest, dec_hook=dec_hook)


def request_of(ids):
    return GenerateRequest(id="r", model="m", token_ids=ids, sampling=Sampling(max_tokens=1))


@pytest.mark.parametrize("ids", [[], [0], [1, 2, 4294967295], range(70_000)])
def test_token_ids_decode_from_bytes_and_from_lists(ids):
    request = request_of(TokenIds(ids))
    packed = ENCODER.encode(request)
    assert len(packed) < 4 * len(ids) + 100
    for sent in (packed, msgspec.msgpack.encode(request_of(list(ids)))):
        received = DECODER.decode(sent)
        assert received == request
        assert isinstance(received.token_ids, TokenIds)


@pytest.mark.parametrize("wrong", [b"abc", [-1], [1 << 32], ["a"], [None], 7, "abcd", {"a": 1}, None])
def test_invalid_token_ids_are_refused_by_field(wrong):
    sent = msgspec.msgpack.encode({**msgspec.to_builtins(request_of([])), "token_ids": wrong})
    with pytest.raises(msgspec.ValidationError, match="token_ids"):
        DECODER.decode(sent)


def test_count_finds_equal_ids():
    rng = random.Random(3)
    ids = TokenIds(rng.choices([0, 1, 7, 256, 263, 65543, 151655], k=5000))
    assert ids.count_each([7, 151655, 263, 9, 0]) == {token: ids.count(token) for token in (7, 151655, 263, 9, 0)}
    assert TokenIds().count_each([1]) == {1: 0}
    many = TokenIds([5, 261, 6] * 1000 + [5])
    assert many.count_each([5, 6, 7]) == {5: 1001, 6: 1000, 7: 0}
    assert TokenIds([9] * 64).count_each([9]) == {9: 64}
