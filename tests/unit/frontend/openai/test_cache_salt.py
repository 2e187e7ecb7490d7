"""What a request's ``cache_salt`` separates, part by part."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from support.checkpoints import picture_url
from support.loops import until
from support.odd_site import ITEM, limits, serving
from support.odd_site import PICTURE as FILE
from triptych.cache.lru import ByteLru
from triptych.config.media import MediaLimits
from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import GenerateRequest, Guided, Sampling
from triptych.frontend.openai.cache_salt import salt_of, salted_grammar
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion
from triptych.kv.prompt_keys import prompt_keys
from triptych.kv.translate import Stored, Translator
from triptych.media.embeddings.pt_file import Status
from triptych.media.embeddings.pt_reader import PtReader
from triptych.media.loader import MediaLoader, MediaReference
from triptych.media.naming import content_hash, salted_name
from triptych.router.routing import EACH, STEP, PromptKeys
from triptych.stages.suspects import name_of

A, B = salt_of("tenant-a"), salt_of("tenant-b")
PICTURE = picture_url()
KEPT = MediaReference("image", "", ITEM)


def test_a_salt_is_known_by_a_digest_alone() -> None:
    assert salt_of(None) == ""
    assert re.fullmatch("[0-9a-f]{32}", A)
    assert len({A, B, salt_of("tenant-A"), salt_of("tenant-a "), salt_of("\u00e9"), salt_of("e\u0301")}) == 6


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@pytest.mark.parametrize(
    ("given", "code"),
    [('""', None), ("1", "invalid_type"), ("[]", "invalid_type"), ('"%s"' % ("x" * 257), "limit_exceeded")],
)
def test_what_is_no_salt_is_refused_by_name(parse, given: str, code: str | None) -> None:  # type: ignore[no-untyped-def]
    body = b'{"model": "m", "messages": [], "prompt": "", "cache_salt": %b}' % given.encode()

    def read() -> None:
        request = parse(body)
        request.check_counts(RequestLimits())
        salt_of(request.cache_salt)

    with pytest.raises(BadRequest) as refused:
        read()
    assert (refused.value.param, refused.value.code) == ("cache_salt", code)
    assert "xxx" not in refused.value.message


def test_a_salt_of_any_characters_is_taken() -> None:
    for text in ("x" * 256, "a@b/c\\d\0", "\ud800"):
        assert salt_of(text)


def test_contents_have_other_names_under_another_salt() -> None:
    name = content_hash("image", b"bytes")
    assert salted_name(name, "") == name
    names = {name, salted_name(name, A), salted_name(name, B), salted_name(content_hash("image", b"other"), A)}
    assert len(names) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in names)
    assert salted_name(name, A) == salted_name(name, A)


async def test_media_are_fetched_kept_and_named_for_each_salt() -> None:
    async with serving() as site, MediaLoader(limits(), cache_bytes=1 << 20) as loader:

        async def page(request: web.Request) -> web.Response:
            return web.Response(body=FILE, headers={"Cache-Control": "max-age=60"})

        site.on_kept = page
        plain = KEPT._replace(url=site.url("/kept"))
        salted = [plain._replace(salt=salt) for salt in ("", A, B)]
        first = [await loader.load_one(one) for one in salted]
        assert len(site.requests) == 3, "nobody finds what was fetched for another"
        again = [await loader.load_one(one) for one in salted]
        assert len(site.requests) == 3
        assert [one.content_hash for one in again] == [one.content_hash for one in first]
        assert len({one.content_hash for one in first}) == 3
        assert bytes(first[0].data) == bytes(first[1].data)


async def test_a_fetch_under_way_is_joined_under_the_same_salt_only() -> None:
    async with serving() as site, MediaLoader(limits(), cache_bytes=1 << 20) as loader:
        go = asyncio.Event()

        async def page(request: web.Request) -> web.Response:
            await go.wait()
            return web.Response(body=FILE)

        site.on_kept = page
        plain = KEPT._replace(url=site.url("/kept"))
        async with asyncio.TaskGroup() as group:
            for salt in (A, A, B):
                group.create_task(loader.load_one(plain._replace(salt=salt)))
            await until(lambda: len(site.requests) == 2, "each tenant's fetch has begun")
            go.set()
        assert len(site.requests) == 2


async def test_files_of_torch_are_read_for_each_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def attempt(self: PtReader, data: bytes) -> tuple[int, bytes]:
        asked.append(data)
        return Status.DONE, b"made"

    monkeypatch.setattr(PtReader, "_attempt", attempt)
    reader = PtReader(MediaLimits(), ByteLru(1 << 20))
    for salt in ("", A, B, A):
        await reader.as_safetensors(b"PK", ITEM, salt)
    await reader.close()
    assert len(asked) == 3


def test_blocks_of_a_prompt_are_those_that_its_engine_tells_of() -> None:
    """So that a salted prompt goes where it is held, and no other does."""
    ids = list(range(16))
    prompts = {salt: PromptKeys(prompt_keys(ids), salt) for salt in ("", A, B)}
    for salt, prompt in prompts.items():
        translator = Translator(4)
        (change,) = translator.store(Stored([b"1", b"2", b"3", b"4"], None, ids, salt=salt)) or ()
        assert prompt.hashes(4) == [int.from_bytes(change.hashes[at : at + 8], "little") for at in range(0, 32, 8)]
    assert len({hash for prompt in prompts.values() for hash in prompt.hashes(4)}) == 12


def test_guesses_at_what_workers_hold_are_apart() -> None:
    ids = list(range((EACH + STEP) * 4))
    one, other = PromptKeys(prompt_keys(ids), A), PromptKeys(prompt_keys(ids), B)
    assert len(one.landmarks(4)) == EACH + 1
    assert not set(one.landmarks(4)) & set(other.landmarks(4))


def test_requests_that_fell_workers_are_known_by_their_salt_too() -> None:
    request = GenerateRequest(id="r", model="m", token_ids=[1], sampling=Sampling(max_tokens=1))  # type: ignore[arg-type]
    prompt = PromptKeys(prompt_keys([1]))
    names = {name_of(replace(request, salt=salt), prompt, "me") for salt in ("", A, B)}
    assert len(names) == 3


def test_grammars_are_known_by_a_text_with_the_salt_in_it() -> None:
    plain = Guided("json_schema", '{"type":"object","$comment":"mine"}')
    assert salted_grammar(plain, "") is plain
    assert salted_grammar(None, A) is None
    assert salted_grammar(Guided("json_object"), A) == Guided("json_object")
    one, other = (salted_grammar(plain, salt) for salt in (A, B))
    assert one is not None
    assert one.schema is not None
    assert one != other
    assert msgspec.json.decode(one.schema) == {"type": "object", "$comment": A}
