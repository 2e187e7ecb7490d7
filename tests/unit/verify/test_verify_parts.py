"""The parts of `triptych verify`: questions, differences, report, and the order of requests."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.audio_model import audio_checkpoint
from support.checkpoints import sentencepiece_like, text_checkpoint
from triptych.config.media import MediaLimits
from triptych.config.verify import CASES
from triptych.contracts.errors import ConfigError
from triptych.demo import MODEL_DIR
from triptych.media.formats.video import inspect_video
from triptych.models.registry import load_checkpoint
from triptych.verify import decode, report
from triptych.verify.ask import AskFailed, Reply
from triptych.verify.cases import chosen, listed, make_cases
from triptych.verify.check import Check, CheckedRequest, Result, model_to_ask
from triptych.verify.compare import compare
from triptych.verify.reference import Expected, Reference, Token

COUNTS = {"text": 0, "one": 1, "two": 2, "four": 4, "sizes": 3, "interleaved": 2, "repeated": 3}
COUNTS |= {"video": 1, "sound": 1}
SETTING = report.Setting(
    url="http://h:1",
    model="m",
    checkpoint="/c",
    model_type="llava",
    dtype="float32",
    device="cpu",
    transformers="5",
    seed=7,
    max_tokens=4,
    concurrency=2,
)


def expected(*words, finish_reason="length", margin=1.0, prompt_tokens=5):
    """Returns an answer of one token for each word; the end of sequence is another token."""
    ends = [len("".join(words[: at + 1])) for at in range(len(words))]
    tokens = [Token(text=word, end=end, margin=margin, runner_up=" or") for word, end in zip(words, ends, strict=True)]
    if finish_reason == "stop":
        tokens.append(Token(text="<end>", end=ends[-1], margin=margin, runner_up=" and"))
    return Expected(
        text="".join(words),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(tokens),
        tokens=tuple(tokens),
    )


def reply(text, finish_reason="length", completion_tokens=3, prompt_tokens=5, **fields):
    return Reply(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_s=fields.pop("total_s", 0.5),
        **fields,
    )


RIGHT = expected("a", " red", " star")


def asked(answer, right=RIGHT):
    return CheckedRequest(streamed=False, reply=answer, difference=compare(right, answer))


def line(*answers, case="two", phase="at once"):
    return report.lines(Result(case=case, phase=phase, requests=answers))


# Questions.


def test_every_case_has_its_media_and_a_text():
    cases = make_cases(CASES, 1)
    assert {case.name: len(case.media) for case in cases} == COUNTS
    for case in cases:
        content = case.api_messages[0]["content"]
        places = [part["type"].removesuffix("_url") for part in content]
        assert places == [part["type"] for part in case.template_messages[0]["content"]], "both see the same order"
        assert "text" in places


def test_the_server_gets_the_pixels_of_the_reference():
    for case in make_cases(["sizes"], 1):
        urls = [part["image_url"]["url"] for part in case.api_messages[0]["content"] if "image_url" in part]
        sent = [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) for url in urls]
        assert [one.tobytes() for one in sent] == [one.tobytes() for one in case.media]
        assert len({one.size for one in sent}) == 3


def test_special_properties_of_some_cases():
    cases = {case.name: case for case in make_cases(CASES, 1)}
    kinds = ["text" if isinstance(part, str) else "picture" for part in cases["interleaved"].parts]
    assert kinds == ["text", "picture", "text", "picture", "text"]
    first, other, again = (one.tobytes() for one in cases["repeated"].media)
    assert first == again != other
    assert len({one.tobytes() for one in cases["four"].media}) == 4


def test_a_seed_determines_the_questions():
    def drawn(seed, names=CASES):
        return [case.api_messages for case in make_cases(names, seed)]

    assert drawn(1) == drawn(1)
    assert all(one != other for one, other in zip(drawn(1), drawn(2), strict=True)), "no cache may know a new seed's"
    assert drawn(1, ["two"]) == [drawn(1)[CASES.index("two")]], "whatever else is asked"


@pytest.mark.parametrize(("names", "named"), [("text, five", "five"), (" ,", "none given"), ("", "none given")])
def test_unknown_cases_are_named(names, named):
    for choose in (listed, lambda names: chosen(names, ("image",))):
        with pytest.raises(ConfigError, match=rf"{named}.*text, one"):
            choose(names)


def test_only_cases_that_the_model_takes_are_asked():
    pictures = [name for name in CASES if name not in ("text", "video", "sound")]
    assert chosen(None, ("image", "video")) == ["text", *pictures, "video"]
    assert chosen(None, ("video",)) == ["text", "video"]
    assert chosen(None, ("audio",)) == ["text", "sound"]
    assert chosen("video , text", ("video",)) == ["text", "video"]
    with pytest.raises(ConfigError, match="takes no audio, for the case sound"):
        chosen("text,sound", ("image", "video"))


def test_videos_and_sounds_are_sent_as_they_are_read():
    film, sound = (make_cases([name], 1)[0].media[0] for name in ("video", "sound"))
    seen = decode.frames(film.file, load_checkpoint(str(MODEL_DIR)))
    assert (seen.values.shape, seen.fps) == ((4, 112, 112, 3), 8.0)
    assert (seen.of in (12, 16, 20), len(seen.indices), seen.indices[-1] < seen.of) == (True, 4, True)
    values, rate = decode.samples(sound.file)
    assert rate == 16_000
    assert 0.1 < abs(values).max() <= 1.0
    info = inspect_video(film.file, MediaLimits(), "film")
    assert (info.num_frames, info.fps) == (seen.of, seen.fps), "the frontend knows the same of it"


def test_a_missing_package_of_a_case_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"video needs av.*extra `verify`"):
        make_cases(["video"], 1)


# Differences.


def test_equal_answers():
    assert compare(RIGHT, reply("a red star")) is None
    assert compare(RIGHT, reply("a red star", prompt_tokens=9)) is None, "counted in another way, perhaps"


@pytest.mark.parametrize(
    ("text", "character", "index"),
    [("a blue star", 2, 1), ("a red stay", 9, 2), ("", 0, 0), ("a red", 5, 2), ("a red star and", 10, None)],
)
def test_the_place_of_the_first_difference(text, character, index):
    difference = compare(RIGHT, reply(text))
    assert (difference.character, difference.index) == (character, index)
    assert difference.token == (None if index is None else RIGHT.tokens[index])


def test_an_answer_that_is_too_long_differs_at_the_end_of_sequence():
    right = expected("a", " red", finish_reason="stop")
    difference = compare(right, reply("a red star"))
    assert (difference.index, difference.token.text) == (2, "<end>")


def test_of_tokens_of_one_character_the_smallest_margin_counts():
    """Three tokens are one character's bytes: any of them may have gone wrong."""
    tokens = [
        Token(text="?", end=end, margin=margin, runner_up="?")
        for end, margin in ((1, 0.001), (1, 2.0), (1, 0.2), (2, 3.0), (3, 0.001))
    ]
    right = Expected(text="a€b", finish_reason="length", prompt_tokens=5, completion_tokens=5, tokens=tuple(tokens))
    difference = compare(right, reply("a\ufffdb"))
    assert (difference.character, difference.index) == (1, 2)


def test_token_counts_and_finish_reasons_are_compared():
    difference = compare(RIGHT, reply("a red star", "stop", 4, prompt_tokens=6))
    assert difference.fields == {
        "finish_reason": ("length", "stop"),
        "completion_tokens": (3, 4),
        "prompt_tokens": (5, 6),
    }
    assert (difference.character, difference.near_ties) == (None, [])


@pytest.mark.parametrize(
    ("margin", "formats"),
    [(0.0001, ["float32", "float16", "bfloat16"]), (0.01, ["float16", "bfloat16"]), (0.2, ["bfloat16"]), (1.0, [])],
)
def test_near_ties_by_format(margin, formats):
    assert compare(expected("a", " red", margin=margin), reply("a blue")).near_ties == formats


# The report.


def test_the_line_of_a_right_answer():
    text = line(asked(reply("a red star", plan="e@e-0 pd@pd-0", first_s=0.25)), case="one", phase="warm")
    assert text.split() == ["one", "warm", "ok", "0.500", "s", "0.250", "s", "e@e-0", "pd@pd-0"]


def test_the_line_of_several_requests_has_the_longest_times_and_all_plans():
    text = line(asked(reply("a red star", plan="epd@a", total_s=0.1)), asked(reply("a red star", plan="epd@b")))
    assert text.split() == ["two", "at", "once", "ok", "0.500", "s", "epd@a", "|", "epd@b"]


def test_a_difference_is_reported_with_its_place_and_margin():
    right = expected("a", " red", " star", margin=0.01)
    head, *rest = line(asked(reply("a blue star", "stop"), right), phase="cold").splitlines()
    assert head.split()[:3] == ["two", "cold", "differs"]
    assert [one.strip() for one in rest] == [
        "the texts differ from character 2, token 1",
        "expected  'a red star'",
        "got       'a blue star'",
        "the reference's best there is ' red', 0.01 above ' or': "
        "a near tie in float16 and bfloat16, so rounding may explain it",
        "finish reason: expected length, got stop",
    ]


def test_a_clear_margin_is_no_near_tie():
    assert "no near tie" in line(asked(reply("a blue star")))


def test_long_texts_are_cut_around_the_difference():
    same = "x" * 100
    text = line(asked(reply(same + "b" + same), expected(same, "a", same)))
    assert f"expected  ...'{'x' * 24}a{'x' * 23}'..." in text


def test_equal_faults_are_reported_once_with_their_number():
    failed = CheckedRequest(streamed=True, error="HTTP status 503: no worker")
    text = line(failed, failed, asked(reply("a red star")), asked(reply("a blue star")))
    assert text.splitlines()[0].split()[:4] == ["two", "at", "once", "failed"], "the worst"
    assert text.count("no worker") == 1
    assert "2 of 4:\n    HTTP status 503" in text
    assert "1 of 4:\n    the texts differ" in text


def test_the_verdict():
    fine = Result(case="one", phase="cold", requests=(asked(reply("a red star")),))
    assert report.verdict([fine, fine]) == "OK: all 2 answers equal transformers' greedy generate"
    tie = asked(reply("a blue"), expected("a", " red", margin=0.01))
    bad = Result(
        case="one", phase="at once", requests=(tie, asked(reply("")), CheckedRequest(streamed=True, error="no"))
    )
    assert report.verdict([fine, bad]) == (
        "NOT OK: 1 of 4 answers equal transformers' greedy generate, 2 differ (1 at a near tie), 1 failed"
    )


def test_the_document_has_every_answer():
    results = [Result(case="one", phase="cold", requests=(asked(reply("")), CheckedRequest(streamed=True, error="no")))]
    document = json.loads(report.document(SETTING, results))
    assert document["setting"]["seed"] == 7
    assert [(one["case"], one["phase"], one["outcome"]) for one in document["answers"]] == [
        ("one", "cold", "differs"),
        ("one", "cold", "failed"),
    ]
    assert document["answers"][0]["difference"]["fields"]["text"] == ["a red star", ""]


# Order and number of requests.


class Scripted:
    """A deployment that answers as scripted, and counts."""

    def __init__(self, models=("m",), fails=None):
        self._models, self._fails = models, fails
        self.streams, self.running, self.most = [], 0, 0

    async def models(self):
        if isinstance(self._models, Exception):
            raise self._models
        return list(self._models)

    async def ask(self, model, messages, max_tokens, *, stream):
        self.streams.append(stream)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if len(self.streams) == self._fails:
            raise AskFailed("no\nworker")
        return reply("a red star")


async def checked(deployment, concurrency, names=("text", "one")):
    told = []
    questions = [(case, RIGHT) for case in make_cases(names, 1)]
    results = await Check(deployment, "m", 4, concurrency).run(questions, told.append)
    assert told == results
    return results


async def test_cold_then_warm_then_all_at_once():
    deployment = Scripted()
    results = await checked(deployment, 3)
    assert [(one.case, one.phase, len(one.requests)) for one in results] == [
        ("text", "cold", 1),
        ("one", "cold", 1),
        ("text", "warm", 1),
        ("one", "warm", 1),
        ("text", "at once", 2),
        ("one", "at once", 2),
    ]
    assert deployment.streams[:4] == [False, False, True, True]
    assert all({one.streamed for one in result.requests} == {False, True} for result in results[4:]), "both of each"
    assert deployment.most == 3


async def test_there_are_enough_requests_to_fill_the_concurrency():
    deployment = Scripted()
    results = await checked(deployment, 9)
    assert deployment.most == 9
    assert [len(one.requests) for one in results[4:]] == [5, 5]


async def test_a_failure_is_a_result_and_does_not_end_the_check():
    results = await checked(Scripted(fails=2), 1)
    assert [one.outcome for one in results] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert results[1].requests[0].error == "no worker", "on one line"


@pytest.mark.parametrize(
    ("served", "wanted", "words"),
    [
        (["a", "b"], None, "several models.*--model: a, b"),
        (["a", "b"], "c", "does not serve c; known: a, b"),
        ([], None, "serves no model now"),
        (AskFailed("cannot connect"), None, "--url http://h: cannot connect"),
    ],
)
async def test_a_model_that_cannot_be_asked(served, wanted, words):
    with pytest.raises(ConfigError, match=words):
        await model_to_ask(Scripted(served), "http://h", wanted)


async def test_the_model_to_ask():
    assert await model_to_ask(Scripted(["a"]), "http://h", None) == "a"
    assert await model_to_ask(Scripted(["a", "b"]), "http://h", "b") == "b"


# The reference, without its weights.


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, Path("/nowhere")):
        with pytest.raises(ConfigError, match=str(folder)):
            Reference(folder)


def test_a_reference_for_a_model_of_sounds(tmp_path):
    assert Reference(audio_checkpoint(tmp_path / "m")).takes == ("audio",)


def test_a_model_without_media_is_refused(tmp_path):
    folder = text_checkpoint(tmp_path / "text", sentencepiece_like("ab"))
    with pytest.raises(ConfigError, match=r"type llama cannot be checked; known: qwen2_vl, qwen2_5_vl, .*qwen2_audio"):
        Reference(folder)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
    with pytest.raises(ConfigError, match=r"^torchvision not installed: .*extra `verify`"):
        Reference(MODEL_DIR)


def test_an_answer_is_decoded_after_its_prompt():
    """A tokenizer that drops the space before a text must keep the one between a prompt and its answer."""
    fast = sentencepiece_like("▁say", "▁red", "▁star")
    prompt, ids = fast.encode("say").ids, fast.encode("red star").ids
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens, **_: fast.decode(ids, skip_special_tokens))
    reference = Reference(MODEL_DIR)
    reference.__dict__["_parts"] = (None, SimpleNamespace(tokenizer=tokenizer))
    assert fast.decode(ids) == "red star"
    assert reference._answer(prompt, ids) == " red star"
