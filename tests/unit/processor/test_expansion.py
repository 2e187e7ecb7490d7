"""What a medium's placeholder becomes: copies of itself, or tokens among texts; counted alike at both ends."""

from __future__ import annotations

import pytest

from support.checkpoints import card_of
from support.tiled import EMBEDDED, PLACEHOLDER, TILED, tiled_picture
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.engines.mock.tensors import embedding_of
from triptych.media.loader import MediaReference
from triptych.models import registry
from triptych.models.base import Expansion
from triptych.models.qwen_vl import FAMILY
from triptych.models.registry import load_checkpoint
from triptych.processor.processor import Processor
from triptych.processor.tokenizer import Tokenizer
from triptych.transfer.inproc import InprocTransfer

CHECKPOINT = load_checkpoint(str(MODEL_DIR))
TOKENISE = Tokenizer.load(str(MODEL_DIR)).plain
FIRST, SECOND = tuple(TOKENISE("tile 0")), tuple(TOKENISE("tile 1"))


@pytest.fixture
def tiled(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", (TILED,))


def no_text(text):
    raise AssertionError(f"{text!r} need not be tokenised")


def test_usually_a_placeholder_becomes_as_many_as_the_medium_has_tokens():
    made = FAMILY.media["image"].expand(CHECKPOINT, tiled_picture(), no_text)
    assert made == Expansion((PLACEHOLDER,) * 16, PLACEHOLDER)
    assert made.rows == 16
    assert not FAMILY.tokenises


def test_a_family_may_put_texts_between():
    made = TILED.media["image"].expand(CHECKPOINT, tiled_picture(), TOKENISE)
    tile = (EMBEDDED,) * 8
    assert made == Expansion((*FIRST, *tile, *SECOND, *tile), EMBEDDED)
    assert made.rows == 16
    assert TILED.tokenises


class Source:
    async def load(self, references):
        return [tiled_picture() for _ in references]


async def prompt():
    processor = Processor.load(card_of(MODEL_DIR), None)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    media = [MediaReference("image", "data:,", f"messages[0].content[{index}].image_url") for index in range(2)]
    return await processor.chat(messages, media, {}, Source().load)


async def test_the_prompts_length_counts_the_texts(tiled):
    assert (await prompt()).length == len((await prompt()).token_ids) + 2 * (16 + len(FIRST) + len(SECOND) - 1)


class Buffer:
    """An embedding of the picture's sixteen tokens."""

    shape = (16, 1)

    def __init__(self, name):
        self.data = memoryview(embedding_of(name, 16))


@pytest.mark.parametrize("embedded", [False, True])
async def test_an_engine_counts_as_the_frontend_does(tiled, embedded):

    made = await prompt()
    options = EngineOptions(model_path=str(MODEL_DIR), model_name="m", span=Span.EPD, media=MediaLimits())
    engine = MockEngine(options)
    await engine.start(InprocTransfer(TransferConfig()))
    sampling = Sampling(max_tokens=1)
    request = GenerateRequest(id="r", model="m", token_ids=made.token_ids, media=made.media, sampling=sampling)
    buffers = [Buffer(one.content_hash) for one in made.media] if embedded else ()
    try:
        first, *_ = [delta async for delta in engine.abilities.generating.generate(request, buffers)]
        result = first.prompt_tokens
    finally:
        await engine.stop()
    assert result == made.length
