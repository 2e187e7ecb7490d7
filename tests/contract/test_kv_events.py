"""One story of a KV cache in the format of each engine: our index of it is the same, whoever tells it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from support.checkpoints import IMAGE_ID, cells, picture
from support.kv_tellers import PAD, SIZE, Asked, Index, Sglang, Teller, Trtllm, Truth, Vllm
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.kv_events import Level
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.kv.prompt_keys import MediumAt
from triptych.transfer.inproc import InprocTransfer

CAT, DOG = "ca7" * 21 + "0", "d06" * 21 + "1"
PREFIX = list(range(1, 13))

Story = Callable[[Teller], None]


def whole(teller: Teller, prompt: Asked, begin: int = 0, tier: Level = Level.DEVICE) -> Asked:
    """It is asked, and its blocks from ``begin`` on are stored."""
    teller.asked(prompt)
    teller.stored(prompt, range(begin, prompt.blocks), tier)
    return prompt


def extended(teller: Teller) -> None:
    whole(teller, Asked(PREFIX))
    whole(teller, Asked(PREFIX + [50] * 8), 3)


def adapters(teller: Teller) -> None:
    whole(teller, Asked(PREFIX))
    whole(teller, Asked(PREFIX, adapter="fox"))


def salted(teller: Teller) -> None:
    whole(teller, Asked(PREFIX))
    whole(teller, Asked(PREFIX, salt="tenant"))
    whole(teller, Asked(PREFIX + [60] * 4, salt="tenant"), 3)


def pictures(teller: Teller) -> None:
    """One, which begins and ends within blocks; the same with another question; another one; and both."""
    one = [5, 6, *[PAD] * 7, 8, 9, 10]
    whole(teller, Asked(one, [MediumAt(2, 7, CAT)]))
    whole(teller, Asked([*one[:9], 11, 12, 13], [MediumAt(2, 7, CAT)]), 2)
    whole(teller, Asked(one, [MediumAt(2, 7, DOG)]))
    whole(teller, Asked([*one, *[PAD] * 7, 14], [MediumAt(2, 7, CAT), MediumAt(12, 7, DOG)]), 3)


def picture_twice(teller: Teller) -> None:
    """Side by side, with no text between."""
    whole(teller, Asked([5, *[PAD] * 10, 6], [MediumAt(1, 5, CAT), MediumAt(6, 5, CAT)]))
    whole(teller, Asked([5, *[PAD] * 10, 6], [MediumAt(1, 5, CAT), MediumAt(6, 5, DOG)]), 1)


def in_pieces(teller: Teller) -> None:
    """A prompt that is prefilled in chunks which end within a picture."""
    prompt = Asked([5, *[PAD] * 13, 6, 7], [MediumAt(1, 13, CAT)])
    teller.asked(prompt)
    for block in range(prompt.blocks):
        teller.stored(prompt, range(block, block + 1))


def divided(teller: Teller) -> None:
    """A video with texts between its frames, one of them over a block's end."""
    ids = [5, *[PAD] * 3, 6, 7, *[PAD] * 5, 8, 9, 10, *[PAD] * 2, 11, 12, 13, 14]
    whole(teller, Asked(ids, [MediumAt(1, 15, CAT)]))
    whole(teller, Asked([*ids, *[PAD] * 4], [MediumAt(1, 15, CAT), MediumAt(20, 4, DOG)]), 5)


def divided_by_much(teller: Teller) -> None:
    """A video with more than a block of text in it, prefilled in chunks; its end is beside a picture."""
    prompt = Asked(
        [PAD, 6, 7, 8, 9, 10, 11, 12, PAD, 13, PAD, PAD, PAD, 14, 15, 16], [MediumAt(0, 11, DOG), MediumAt(11, 2, CAT)]
    )
    teller.asked(prompt)
    for block in range(prompt.blocks):
        teller.stored(prompt, range(block, block + 1))


def evicted(teller: Teller) -> None:
    """Within the prefix, from its end, and computed again."""
    prompt = whole(teller, Asked(PREFIX + [50] * 8))
    teller.removed(prompt, [1])
    teller.removed(prompt, [4])
    teller.stored(prompt, range(1, 2))


def offloaded(teller: Teller) -> None:
    """Some of it goes to host memory, and some of that is dropped."""
    prompt = whole(teller, Asked(PREFIX + [50] * 8))
    other = whole(teller, Asked([5, *[PAD] * 6, 6], [MediumAt(1, 6, CAT)]))
    teller.offloaded(prompt, range(2, 5))
    teller.offloaded(other, range(0, 2))
    teller.removed(prompt, [4], Level.HOST)


def read_back(teller: Teller) -> None:
    """From host memory to where it was: said with its tokens again, or as a copy, by whoever."""
    prompt = whole(teller, Asked([5, *[PAD] * 6, 6], [MediumAt(1, 6, CAT)]))
    teller.offloaded(prompt, range(0, 2))
    teller.stored(prompt, range(0, 2))
    whole(teller, Asked([*prompt.token_ids, *[9] * 4], prompt.media), 2)


def cleared(teller: Teller) -> None:
    prompt = whole(teller, Asked(PREFIX + [50] * 8))
    teller.offloaded(prompt, range(4, 5))
    teller.cleared()
    whole(teller, Asked(PREFIX))


STORIES: list[Story] = [
    extended,
    adapters,
    salted,
    pictures,
    picture_twice,
    in_pieces,
    divided,
    divided_by_much,
    evicted,
    offloaded,
    read_back,
    cleared,
]
TELLERS: list[Any] = [Vllm, Sglang, Trtllm]
engines = pytest.mark.parametrize("engine", TELLERS)


@engines
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_index_is_the_same_whoever_tells(engine: Any, story: Story) -> None:
    told, truth = engine(), Truth()
    story(told)
    story(truth)
    lowest = max(told.index.held, default=Level.DEVICE)
    assert truth.held(Level.DEVICE), "the story is about something"
    for level in Level:
        assert told.index.held.get(min(level, lowest), set()) == truth.held(level)
    assert told.events.translator.unknown == 0


@engines
async def test_the_mock_engine_itself_says_the_same(engine: Any) -> None:
    """Of requests as they come to a worker, with one placeholder for a picture."""
    ids, side = [21, 22, 23, IMAGE_ID, 24, 25], 112
    rows = cells(side, side)
    expanded = [*ids[:3], *[PAD] * rows, *ids[4:]]
    prompts = [Asked(PREFIX), Asked(PREFIX + [50] * 8)]
    prompts += [Asked([*expanded, *rest], [MediumAt(3, rows, CAT)]) for rest in ([26], [27, 28, 29, 30])]
    media = [Picture(content_hash=CAT, format="PNG", data=picture(side, side), width=side, height=side)]
    asked = [
        *[(list(prompt.token_ids), []) for prompt in prompts[:2]],
        *[([*ids, *prompt.token_ids[len(expanded) :]], media) for prompt in prompts[2:]],
    ]

    told = engine()
    for prompt in prompts:
        whole(told, prompt, told.index.matched(prompt, Level.DEVICE))
    options = EngineOptions(
        model_path=str(MODEL_DIR),
        model_name="m",
        span=Span.EPD,
        media=MediaLimits(),
        args=("--pace", "demo-cpu", "--block-size", str(SIZE)),
    )
    mock, index = MockEngine(options), Index()
    await mock.start(InprocTransfer(TransferConfig()))
    try:
        for number, (token_ids, with_media) in enumerate(asked):
            sampling = Sampling(max_tokens=1, temperature=0)
            request = GenerateRequest(
                id=str(number), model="m", token_ids=token_ids, sampling=sampling, media=with_media
            )
            async for _ in mock.abilities.generating.generate(request):
                pass
        assert mock.abilities.kv_reports is not None
        index.hear((await anext(mock.abilities.kv_reports.follow())).changes)
    finally:
        await mock.stop()
    assert told.index.held == index.held


def test_what_each_teller_says_is_of_its_own_kind() -> None:
    """A story proves little where the formats are taken for each other's."""
    payload = Sglang().padded(Asked([5, *[PAD] * 6, 6], [MediumAt(1, 6, CAT)]))
    assert len({*payload}) == 6, "four ids in turn, and two texts"
    block = Trtllm().block(Asked([5, *[PAD] * 6, 6], [MediumAt(1, 6, CAT)]), 1, Level.DEVICE)
    assert block["mm_keys"][0]["start_offset"] == SIZE - 1
    assert block["tokens"][0]["token_id"] > PAD


@engines
def test_by_chance_it_is_the_same_as_the_truth(engine: Any) -> None:
    rng = random.Random(29)
    prompts = [made_up(rng) for _ in range(12)]
    told, truth = engine(), Truth()
    for prompt in prompts:
        told.asked(prompt)
    held: set[tuple[int, ...]] = set()
    for _ in range(300):
        prompt = rng.choice(prompts)
        names = [tuple(prompt.own[: block + 1]) for block in range(prompt.blocks)]
        if rng.random() < 0.6:
            begin = next((at for at, name in enumerate(names) if name not in held), prompt.blocks)
            end = rng.randint(begin, prompt.blocks)
            if begin < end:
                for teller in (told, truth):
                    teller.stored(prompt, range(begin, end))
                held |= {*names[begin:end]}
        elif names and names[gone := rng.randrange(prompt.blocks)] in held:
            for teller in (told, truth):
                teller.removed(prompt, [gone])
            held.discard(names[gone])
        assert told.index.held.get(0, set()) == truth.held(Level.DEVICE)


def made_up(rng: random.Random) -> Asked:
    """Texts and media in turn, from few of each, so that prompts share beginnings."""
    ids: list[int] = []
    media: list[MediumAt] = []
    while len(ids) < 24:
        ids += [rng.choice((1, 2))] * rng.randint(0, 3)
        if rng.random() < 0.7:
            content, rows = rng.choice(((CAT, 5), (DOG, 6)))
            media.append(MediumAt(len(ids), rows, content))
            ids += [PAD] * rows
    return Asked(ids, media, rng.choice(("", "fox")))
