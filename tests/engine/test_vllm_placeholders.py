"""Prompts as vLLM's engine gets them, where a medium's placeholder becomes more than copies of itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from support.tiled import EMBEDDED, PLACEHOLDER, TILED, tiled_picture
from triptych.contracts.errors import BadRequest, TriptychError
from triptych.contracts.media import Medium, PrecomputedEmbedding
from triptych.demo import MODEL_DIR
from triptych.engines.vllm.environment import prepare
from triptych.models import registry
from triptych.models.registry import load_checkpoint
from triptych.processor.tokenizer import Tokenizer

prepare()  # before anything imports vLLM

PICTURE = tiled_picture()
EXPANDED = TILED.media["image"].expand(load_checkpoint(str(MODEL_DIR)), PICTURE, Tokenizer.load(str(MODEL_DIR)).plain)
LENGTH = len(EXPANDED.token_ids)


@pytest.fixture
def items(monkeypatch: pytest.MonkeyPatch) -> Any:
    from triptych.engines.vllm.mm_items import Items

    monkeypatch.setattr(registry, "FAMILIES", (TILED,))
    return Items(load_checkpoint(str(MODEL_DIR)))


def test_embeddings_go_to_their_tokens_and_texts_stay(items: Any) -> None:
    from triptych.engines.vllm.mm_items import assemble

    item = items.bare(PICTURE)
    prompt = assemble([1, PLACEHOLDER, 2, PLACEHOLDER, 3], [item, item], {"image": PLACEHOLDER}, [4])
    assert prompt["prompt_token_ids"] == [1, *EXPANDED.token_ids, 2, *EXPANDED.token_ids, 3, 4]
    first, second = prompt["mm_placeholders"]["image"]
    assert (first.offset, second.offset) == (1, 2 + LENGTH)
    for place in (first, second):
        assert (place.length, place.get_num_embeds()) == (LENGTH, 16)
        assert place.is_embed.tolist() == [token == EMBEDDED for token in EXPANDED.token_ids]


def test_an_embedding_has_a_row_for_each_token_that_it_stands_in_for(items: Any) -> None:
    assert items.tokens(PICTURE) == 16
    assert items.fits(PICTURE, (16, 128))
    assert not items.fits(PICTURE, (LENGTH, 128))


def test_tokens_of_another_processor_are_refused(items: Any) -> None:
    assert items.processed(PICTURE, list(EXPANDED.token_ids), None).expansion == EXPANDED
    with pytest.raises(TriptychError, match=f"5 tokens for this image, not the {LENGTH}"):
        items.processed(PICTURE, [EMBEDDED] * 5, None)


def test_a_plain_family_needs_no_mask() -> None:
    from triptych.engines.vllm.mm_items import Items, assemble

    item = Items(load_checkpoint(str(MODEL_DIR))).bare(PICTURE)
    prompt = assemble([1, PLACEHOLDER], [item], {"image": PLACEHOLDER}, ())
    assert prompt["prompt_token_ids"] == [1, *[PLACEHOLDER] * 16]
    assert prompt["mm_placeholders"]["image"][0].is_embed is None


def test_a_size_that_is_not_known_is_refused(items: Any) -> None:
    with pytest.raises(BadRequest, match="size of this image"):
        items.bare(msgspec.structs.replace(PICTURE, width=0))
    assert torch.is_tensor(items.bare(PICTURE).data["image_grid_thw"].data)


TIMES = {"qwen2_5_vl": {"second_per_grid_ts": (1.0,)}, "qwen3_vl": {"timestamps": (0.25, 1.25)}}
WRONG_TIMES = {"qwen2_5_vl": ((), (0.0,), (1e9,), (1.0, 1.0)), "qwen3_vl": ((), (0.25,), (1.25, 0.25), (0.25, 1e9))}


def timed(family: str) -> tuple[Any, Medium]:
    """Items of the demo model as if it were of ``family``, and a video of two steps of four tokens."""
    from triptych.engines.vllm.mm_items import Items

    demo = load_checkpoint(str(MODEL_DIR))
    vision = {**demo.config["vision_config"], "deepstack_visual_indexes": [], "tokens_per_second": 2}
    checkpoint = replace(demo, config={**demo.config, "model_type": family, "vision_config": vision})
    film = PrecomputedEmbedding(
        kind="video",
        content_hash="f" * 64,
        metadata={"video_grid_thw": (2, 4, 4), **TIMES[family]},
        shape=(8, 128),
        dtype="float32",
    )
    return Items(checkpoint), film


@pytest.mark.parametrize("family", TIMES)
def test_times_of_precomputed_videos_go_where_the_model_reads_them(family: str) -> None:
    items, film = timed(family)
    item = items.bare(film)
    told = {name: one.data.tolist() for name, one in item.data.items()}
    assert told.pop("video_grid_thw") == [2, 4, 4]
    assert told == ({"second_per_grid_ts": 1.0} if family == "qwen2_5_vl" else {}), "without a dimension"
    assert item.expansion.rows == 8
    assert (len(item.expansion.token_ids) > 8) == (family == "qwen3_vl")


def test_whole_seconds_are_told_as_others_are() -> None:
    items, film = timed("qwen2_5_vl")
    whole = msgspec.structs.replace(film, metadata={**film.metadata, "second_per_grid_ts": (1,)})
    assert items.bare(whole).data["second_per_grid_ts"].data.dtype == torch.float32


@pytest.mark.parametrize("family", TIMES)
def test_wrong_times_that_came_over_the_wire_are_refused_here_too(family: str) -> None:
    items, film = timed(family)
    (name,) = TIMES[family]
    endless = tuple((*TIMES[family][name][:-1], one) for one in (math.nan, math.inf, -1.0))
    for wrong in (*WRONG_TIMES[family], *endless):
        for use in (items.bare, items.tokens):
            with pytest.raises(BadRequest, match=f"{name} must be"):
                use(msgspec.structs.replace(film, metadata={**film.metadata, name: wrong}))
    without = msgspec.structs.replace(film, metadata={"video_grid_thw": (2, 4, 4)})
    with pytest.raises(BadRequest, match=f"without '{name}'"):
        items.bare(without)
