"""Media in every form that vLLM is given them: the same tokens for all, and no form that ends the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vllm_inprocess import KV, Embedding, Engine, bare, features, greedy, medium, question

from support.reference import Reference, make_checkpoint
from triptych.contracts.errors import BadRequest, MediaMissing, TriptychError
from triptych.contracts.media import Medium, PrecomputedEmbedding
from triptych.contracts.spans import Span
from triptych.engines.load import Load
from triptych.engines.vllm.flags import VllmFlags
from triptych.models.registry import family_of, load_checkpoint

PICTURES = ((1, 140, 112), (2, 84, 84), (3, 200, 120), (4, 112, 168))


@pytest.fixture(
    scope="module", params=["qwen2_vl", "qwen2_5_vl", "llava", pytest.param("qwen3_vl", marks=pytest.mark.full)]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def whole(model: Path) -> Iterator[Engine]:
    engine = Engine(model, Span.EPD)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embeddings(model: Path) -> list[Any]:
    """[tokens, hidden] of each of ``PICTURES``."""
    reference = Reference(model)
    return [features(reference, *one) for one in PICTURES]


def _buffers(embeddings: list[Any], count: int) -> list[Any]:
    return [Embedding.of(one) for one in embeddings[:count]]


def precomputed(model: Path, one: Medium, embedding: Any) -> Medium:
    """``one`` as if it had come as ``embedding``, [tokens, hidden]."""
    checkpoint = load_checkpoint(str(model))
    metadata = family_of(checkpoint).media["image"].metadata(checkpoint, one)
    shape = tuple(embedding.shape)
    return PrecomputedEmbedding(kind="image", content_hash="f" * 64, metadata=metadata, shape=shape, dtype="float32")


class TestEmbeddings:
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_give_the_tokens_that_pixels_give(self, whole: Engine, model: Path, embeddings: list[Any], count: int):
        media = [medium(*one) for one in PICTURES[:count]]
        whole.forget()
        expected = whole.answer(question(model, media))
        assert len(set(expected)) > 3, "the answer itself must be varied to prove anything"
        whole.forget()
        assert whole.answer(question(model, bare(*media)), _buffers(embeddings, count)) == expected
        assert whole.answer(question(model, bare(*media)), _buffers(embeddings, count)) == expected, "repeated"
        assert whole.answer(question(model, media)) == expected, "pixels after embeddings"
        whole.forget()
        mixed = [buffer if index % 2 == 0 else None for index, buffer in enumerate(_buffers(embeddings, count))]
        assert whole.answer(question(model, media), mixed) == expected, "mixed with pixels"

    def test_in_half_precision_are_taken(self, whole: Engine, model: Path, embeddings: list[Any]):
        import torch

        whole.forget()
        half = Embedding.of(embeddings[0].to(torch.bfloat16))
        assert len(whole.answer(question(model, bare(medium(*PICTURES[0]))), [half])) == 12
        whole.forget()  # the picture's name now stands for rounded values

    def test_are_copied_before_the_buffer_goes(self, whole: Engine, model: Path, embeddings: list[Any]):
        media = [medium(*PICTURES[0])]
        whole.forget()
        expected = whole.answer(question(model, media))
        whole.forget()
        (buffer,) = _buffers(embeddings, 1)
        prompt = whole.prompt(question(model, bare(*media)), [buffer])
        buffer.close()
        (output,) = whole.finish([(prompt, greedy(12))])
        assert list(output.outputs[0].token_ids) == expected

    def test_embeddings_of_a_wrong_shape_are_refused(self, whole: Engine, model: Path, embeddings: list[Any]):
        import torch

        one = embeddings[0]
        wrong = [one[:-1], torch.cat([one, one]), one[:, :-2], one[None], one.to(torch.float64), one.to(torch.int32)]
        short = Embedding.of(one)
        short.data = short.data[:-4]
        for buffer in [*map(Embedding.of, wrong), short]:
            with pytest.raises(TriptychError, match="embedding"):
                whole.prompt(question(model, bare(medium(*PICTURES[0]))), [buffer])
        self.test_are_copied_before_the_buffer_goes(whole, model, embeddings)

    def test_embeddings_that_clients_computed_give_the_same_answers(
        self, whole: Engine, model: Path, embeddings: list[Any]
    ):
        whole.forget()
        expected = whole.answer(question(model, [medium(*PICTURES[0])]))
        given = precomputed(model, medium(*PICTURES[0]), embeddings[0])
        assert whole.answer(question(model, [given]), _buffers(embeddings, 1)) == expected
        assert whole.answer(question(model, [medium(*PICTURES[0])])) == expected, "by another name"

    def test_embeddings_that_clients_computed_are_checked_here_too(
        self, whole: Engine, model: Path, embeddings: list[Any]
    ):
        given = precomputed(model, medium(*PICTURES[0]), embeddings[0])
        tokens, width = embeddings[0].shape
        for change in (
            {"metadata": {"image_grid_thw": (1, 2, 2)}},
            {"metadata": {**given.metadata, "other": (1,)}},
            {"shape": (tokens + 1, width)},
            {"kind": "audio"},
        ):
            with pytest.raises(BadRequest):
                whole.prompt(
                    msgspec.structs.replace(question(model, [given]), media=[msgspec.structs.replace(given, **change)]),
                    _buffers(embeddings, 1),
                )
        for wrong in (embeddings[0][:-1], embeddings[0][:, :-2]):
            with pytest.raises(TriptychError, match="embedding"):
                whole.prompt(question(model, [given]), [Embedding.of(wrong)])
        self.test_embeddings_that_clients_computed_give_the_same_answers(whole, model, embeddings)

    def test_and_media_metadata_must_agree(self, whole: Engine, model: Path, embeddings: list[Any]):
        (one,) = bare(medium(*PICTURES[0]))
        odd = msgspec.structs.replace(one, metadata={"image_grid_thw": (1, 2, 2)})
        with pytest.raises(TriptychError, match="image_grid_thw"):
            whole.prompt(question(model, [odd]), _buffers(embeddings, 1))


class TestPrompts:
    def test_go_on_after_what_was_said(self, whole: Engine, model: Path):
        media = [medium(*one) for one in PICTURES[:2]]
        expected = whole.answer(question(model, media))
        rest = whole.answer(question(model, media, generated_ids=expected[:5], tokens=7))
        assert rest == expected[5:]
        text = whole.answer(question(model, []))
        assert whole.answer(question(model, [], generated_ids=text[:3], tokens=9)) == text[3:]

    def test_without_a_medium_anywhere_are_refused(self, whole: Engine, model: Path):
        whole.forget()
        with pytest.raises(MediaMissing) as refused:
            whole.prompt(question(model, [medium(1), *bare(medium(2))]))
        assert refused.value.param == "media[1]"

    def test_find_the_medium_that_came_before(self, whole: Engine, model: Path):
        media = [medium(5)]
        expected = whole.answer(question(model, media))
        assert whole.answer(question(model, bare(*media))) == expected

    @pytest.mark.parametrize("change", [-1, 1])
    def test_have_a_placeholder_for_each_medium(self, whole: Engine, model: Path, change: int):
        right = question(model, [medium(1), medium(2)])
        others = right.media[:1] if change < 0 else [*right.media, medium(3)]
        with pytest.raises(BadRequest, match="placeholders than media"):
            whole.prompt(msgspec.structs.replace(right, media=others))

    def test_too_long_are_refused(self, whole: Engine, model: Path):
        from vllm.exceptions import VLLMClientError

        prompt = whole.prompt(question(model, [medium(1)], text=2000))
        with pytest.raises(VLLMClientError, match="maximum model length"):
            whole.finish([(prompt, greedy(1))])


def test_limits_of_the_user_hold_in_every_form(model: Path, embeddings: list[Any]) -> None:
    """A limit of 0 leaves out the encoder: embeddings only."""
    media = [medium(*one) for one in PICTURES[:3]]
    engine = Engine(model, Span.PD, limit_mm_per_prompt={"image": 2})
    with pytest.raises(BadRequest, match="at most 2"):
        engine.prompt(question(model, [media[0]] * 3))
    expected = engine.answer(question(model, media[:2]))
    engine.close()
    blind = Engine(model, Span.PD, limit_mm_per_prompt={"image": 0}, enable_mm_embeds=True)
    with pytest.raises(MediaMissing):
        blind.prompt(question(model, media[:1]))
    assert blind.answer(question(model, bare(*media[:2])), _buffers(embeddings, 2)) == expected
    blind.close()


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def split_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("split") / request.param, request.param)


def test_a_store_carries_embeddings_from_encode_to_prefill(split_model: Path, tmp_path: Path) -> None:
    """One test for both ends: an engine of each, one after the other."""
    flags = VllmFlags(ec_storage_path=str(tmp_path))
    media = [medium(*one) for one in PICTURES]
    _encode(split_model, flags, media)
    prefill = Engine(split_model, Span.P, flags)
    for count in (1, 2, 4):
        expected = prefill.answer(question(split_model, media[:count]))
        prefill.forget()
        assert prefill.answer(question(split_model, bare(*media[:count]))) == expected
        prefill.forget()
        mixed = [one if index % 2 else bare(one)[0] for index, one in enumerate(media[:count])]
        assert prefill.answer(question(split_model, mixed)) == expected, "mixed with pixels"
        prefill.forget()
    _loses(prefill, split_model, media)
    prefill.close()


def _encode(model: Path, flags: VllmFlags, media: list[Any]) -> None:
    from triptych.engines.vllm.encode import VllmEncoding

    engine = Engine(model, Span.E, flags)
    store = engine.prompts.store
    assert store is not None
    encoding = VllmEncoding(SimpleNamespace(engine=engine), engine.prompts, store, Load())

    def encode(*wanted: Any) -> int:
        """Engine calls that it took."""
        before = engine.calls
        assert engine.loop.run(encoding.encode(wanted)) == [None] * len(wanted)
        assert all(store.holds(one.content_hash) for one in wanted)
        return engine.calls - before

    assert encode(*media[:3]) == 1, "all media of a call in one engine request"
    assert encode(media[3], media[0], media[3]) == 1
    assert encode(*media) == 0, "they are there already"
    assert encode(*bare(*media)) == 0
    store.path(media[1].content_hash).unlink()
    assert encode(*media) == 1, "evicted from the store, though still in vLLM's own cache"
    assert encode(*(medium(seed, 224, 224) for seed in range(50, 80))) > 1, "more than a prompt holds"
    with pytest.raises(MediaMissing, match="without its data"):
        encode(*bare(medium(99)))
    engine.close()


def _loses(prefill: Engine, model: Path, media: list[Any]) -> None:
    """Nothing that happens to the store ends the engine."""
    store = prefill.prompts.store
    assert store is not None
    with pytest.raises(MediaMissing):
        prefill.prompt(question(model, bare(medium(99))))
    late, fine, torn = (prefill.prompt(question(model, bare(one))) for one in media[:3])
    store.path(media[0].content_hash).unlink()
    path = store.path(media[2].content_hash)
    path.write_bytes(path.read_bytes()[:-10])
    first, second, third = prefill.finish([(one, greedy(4)) for one in (late, fine, torn)])
    assert (first.outputs[0].finish_reason, first.outputs[0].token_ids) == ("error", [])
    assert (second.outputs[0].finish_reason, len(second.outputs[0].token_ids)) == ("length", 4)
    assert (third.outputs[0].finish_reason, third.outputs[0].token_ids) == ("error", [])
    with pytest.raises(MediaMissing):
        prefill.prompt(question(model, bare(media[2])))
    assert len(prefill.answer(question(model, media))) == 12, "pixels stand in, and the engine is well"


@pytest.fixture(scope="module")
def decoding(split_model: Path) -> Iterator[Engine]:
    """With few KV blocks, so that requests push each other out."""
    engine = Engine(split_model, Span.D, max_model_len=512, kv_cache_memory_bytes=2600 << 10)
    yield engine
    engine.close()


class TestWithoutValues:
    def test_media_are_taken_while_their_kv_cache_is_there(self, decoding: Engine, split_model: Path):
        from triptych.engines.vllm.prompt import failure

        asked, text = [medium(1)], 70
        with pytest.raises(MediaMissing):
            decoding.prompt(question(split_model, bare(*asked)))
        lost = decoding.prompt(question(split_model, bare(*asked), kv=KV))
        (output,) = decoding.finish([(lost, greedy(4))])
        assert (output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("error", [])
        assert isinstance(failure(lost, guided=False), MediaMissing)
        expected = decoding.answer(question(split_model, asked, text=text))
        decoding.forget_pixels()
        again = decoding.prompt(question(split_model, bare(*asked), text=text, kv=KV))
        other = decoding.prompt(question(split_model, bare(medium(2)), text=text, kv=KV))
        mine, others = decoding.finish([(again, greedy(12)), (other, greedy(12))])
        assert list(mine.outputs[0].token_ids) == expected
        assert others.outputs[0].finish_reason == "error", "another picture's cache must not serve"

    def test_a_request_that_lost_its_kv_cache_ends_alone(self, decoding: Engine, split_model: Path):
        """One that vLLM preempts would need its pictures again."""
        decoding.forget()
        questions = [question(split_model, [medium(seed)], text=60, tokens=1) for seed in range(5)]
        for one in questions:
            decoding.answer(one)
        decoding.forget_pixels()
        prompts = [decoding.prompt(msgspec.structs.replace(one, media=bare(*one.media), kv=KV)) for one in questions]
        ended = [output.outputs[0].finish_reason for output in decoding.finish([(one, greedy(300)) for one in prompts])]
        assert set(ended) == {"length", "error"}, "the bound on blocks must have been met"
        assert len(decoding.answer(questions[0])) == 1, "and the engine is well"
