"""Prompts as vLLM's engine gets them, where a medium's placeholder becomes more than copies of itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

import triptych.engines.vllm  # noqa: F401  (sets the environment that vLLM reads on import)
from support.tiled import EMBEDDED, PLACEHOLDER, TILED, tiled_picture
from triptych.contracts.errors import BadRequest, TriptychError
from triptych.demo import MODEL_DIR
from triptych.models import registry
from triptych.models.registry import load_checkpoint
from triptych.processor.tokenizer import Tokenizer

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
