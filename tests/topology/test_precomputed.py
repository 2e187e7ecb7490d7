"""Media as precomputed embeddings, on the mock engine: off by default, in every mode, among raw ones, or refused."""

import io
import math

import pytest

from support.background import served
from support.checkpoints import copy_demo, image_part, picture_url
from support.deployment import deployment
from support.embeddings import Raw, floats, grid, numbers, part, safetensors, url_of
from support.loops import until
from support.media_site import media_site
from triptych.config.media import MediaLimits
from triptych.engines.mock.tensors import EMBEDDING_WIDTH

MODES = {"EPD": ["epd"], "E/PD": ["e", "pd"], "EP/D": ["ep", "d"], "E/P/D": ["e", "p", "d"]}
GIVEN = {"EPD": "pd@epd-0", "E/PD": "pd@pd-1", "EP/D": "p@ep-0 d@d-1", "E/P/D": "p@p-1 d@d-2"}
MIXED = {"EPD": "epd@epd-0", "E/PD": "e@e-0 pd@pd-1", "EP/D": "ep@ep-0 d@d-1", "E/P/D": "e@e-0 p@p-1 d@d-2"}
ON = {"enable_mm_embeds": True, "plan_header": True}
RAW = image_part(picture_url(64, 64, "blue"))
TEXT = {"type": "text", "text": "what is it?"}
TOKENS = 8
SIDES = (1, 4, 8)


def file(seed=0, tokens=TOKENS, width=EMBEDDING_WIDTH, sides=SIDES):
    return safetensors(image_embeds=floats(tokens, width, seed=seed), image_grid_thw=grid(*sides))


def embedded(seed=0, **form):
    return part("image", url_of(file(seed, **form)))


def answered(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def refusal(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def prompt_tokens(answer):
    answered(answer)
    return answer.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("settings", "code", "flag"),
    [
        ({}, "mm_embeds_disabled", "--enable-mm-embeds"),
        ({"enable_mm_embeds": True, "enable_multimodal": False}, "multimodal_disabled", "--enable-multimodal"),
    ],
)
async def test_they_are_off_by_default(settings, code, flag):
    async with deployment(frontend=settings) as d:
        error = refusal(await d.chat([TEXT, embedded()]))
        assert (error["code"], error["param"]) == (code, "messages[0].content[1].image_embeds")
        assert flag in error["message"]


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_takes_them_alone_and_among_others(mode):
    async with deployment(spans=MODES[mode], frontend=ON) as d:
        nothing = prompt_tokens(await d.chat([TEXT]))
        raw = prompt_tokens(await d.chat([RAW, TEXT])) - nothing - 2
        for asked, tokens, plan in [
            ([embedded(1), TEXT], TOKENS, GIVEN),
            ([embedded(2), embedded(3), embedded(2), TEXT], 3 * TOKENS, GIVEN),
            ([embedded(4), image_part(picture_url(64, 64, "red")), TEXT], TOKENS + raw, MIXED),
            ([image_part(picture_url(64, 64, "green")), embedded(5), TEXT, embedded(1)], 2 * TOKENS + raw, MIXED),
        ]:
            answer = await d.chat(asked, max_tokens=50)
            wrapping = 2 * sum(one is not TEXT for one in asked)  # the template's tokens around each
            assert prompt_tokens(answer) == nothing + tokens + wrapping
            assert answer.headers["x-triptych-plan"] == plan[mode]
            assert "what is it?" in answered(answer)
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
        await until(lambda: all(one.counts["transfer_leases"] == 0 for one in d.workers), "no lease is left")
        assert sum(one.counts["engine_encoded_media_total"] for one in d.workers) == (3 if "E/" in mode else 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_repeat_is_not_sent_again(mode, monkeypatch):
    async with deployment(spans=MODES[mode], frontend=ON) as d:
        seen = []
        at = next(one for one in d.workers if "p" in one.instance.span.value)
        receive = at.worker.endpoints._receiver.embeddings

        async def spied(media):
            seen.append([len(medium.data) for medium in media])
            return await receive(media)

        monkeypatch.setattr(at.worker.endpoints._receiver, "embeddings", spied)
        first = answered(await d.chat([embedded(1), TEXT]))
        assert answered(await d.chat([embedded(1), TEXT])) == first
        await d.chat([embedded(2), embedded(1), TEXT])
        size = TOKENS * EMBEDDING_WIDTH * 4
        assert seen == [[size], [0], [size, 0]]
        at.worker.cache.store.clear()
        assert answered(await d.chat([embedded(1), TEXT])) == first
        assert seen[3:] == [[0], [size]], "it is asked for by name, missed, and sent"


async def test_a_worker_that_keeps_nothing_is_sent_them_each_time():
    async with deployment(frontend=ON, embedding_cache_bytes=0) as d:
        for _ in range(2):
            assert "what is it?" in answered(await d.chat([embedded(1), TEXT], max_tokens=50))
        await until(lambda: d.worker.counts["transfer_arena_used_bytes"] == 0, "nothing is kept")


@pytest.fixture(scope="module")
def running():
    with served(frontend=ON) as d:
        yield d


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_other_dtypes_are_converted(running, dtype):
    pytest.importorskip("torch")
    data = safetensors(embeds=Raw(dtype, (2, EMBEDDING_WIDTH), bytes(range(32))), image_grid_thw=grid(1, 2, 4))
    answer = running.chat([part("image", url_of(data), plain=True), TEXT])
    assert "what is it?" in answered(answer)


def test_a_video_may_come_so_too(running):
    data = safetensors(video_embeds=floats(8, EMBEDDING_WIDTH), video_grid_thw=grid(2, 4, 4))
    assert "what" in answered(running.chat([part("video", url_of(data)), TEXT]))


def film(**more):
    """Of two steps in time of four tokens each."""
    return safetensors(video_embeds=floats(8, EMBEDDING_WIDTH), **{"video_grid_thw": grid(2, 4, 4), **more})


TIMED = {
    "qwen2_5_vl": {"second_per_grid_ts": numbers(0.5)},
    "qwen3_vl": {"timestamps": numbers(0.25, 1.25)},
}
OTHER_TIMES = {
    "qwen2_5_vl": {"second_per_grid_ts": numbers(1.0, dtype="F32")},
    "qwen3_vl": {"timestamps": numbers(0.25, 123456.5)},
}
UNTIMELY = {
    "qwen2_5_vl": [
        film(),
        film(second_per_grid_ts=numbers(0.0)),
        film(second_per_grid_ts=numbers(1e300)),
        film(second_per_grid_ts=numbers(math.nan)),
        film(second_per_grid_ts=numbers(1.0, 1.0)),
        film(second_per_grid_ts=numbers(1.0), video_grid_thw=grid(4, 4, 4)),
        film(second_per_grid_ts=numbers(1.0), timestamps=numbers(0.25, 1.25)),
    ],
    "qwen3_vl": [
        film(),
        film(timestamps=numbers(0.25)),
        film(timestamps=numbers(1.25, 0.25)),
        film(timestamps=numbers(0.25, 1e300)),
        film(timestamps=numbers(0.25, math.inf)),
        film(timestamps=numbers(0.25, 1.25), video_grid_thw=grid(4, 4, 4)),
        film(timestamps=numbers(0.25, 1.25), second_per_grid_ts=numbers(1.0)),
    ],
}


@pytest.mark.parametrize("family", TIMED)
@pytest.mark.parametrize("mode", MODES)
async def test_videos_whose_steps_have_times_come_with_them(family, mode, tmp_path):
    tower = {"patch_size": 14, "spatial_merge_size": 2, "deepstack_visual_indexes": [0], "tokens_per_second": 2}
    model = copy_demo(tmp_path, model_type=family, vision_config=tower)
    async with deployment(spans=MODES[mode], frontend=ON, model=str(model)) as d:
        nothing = prompt_tokens(await d.chat([TEXT]))
        first, other = (part("video", url_of(film(**one[family]))) for one in (TIMED, OTHER_TIMES))
        answer = await d.chat([first, TEXT], max_tokens=50)
        beside = prompt_tokens(answer) - nothing - 8 - 2  # the template's tokens around it
        assert (beside > 4) == (family == "qwen3_vl"), "times and marks of two steps"
        assert "what is it?" in answered(answer)
        assert answer.headers["x-triptych-plan"] == GIVEN[mode]
        assert prompt_tokens(await d.chat([first, TEXT])) == prompt_tokens(answer), "of what the worker keeps"
        later = prompt_tokens(await d.chat([other, first, TEXT]))
        assert (later > 2 * prompt_tokens(answer) - nothing) == (family == "qwen3_vl"), "a longer time"
        for wrong in UNTIMELY[family]:
            error = refusal(await d.chat([TEXT, part("video", url_of(wrong))]))
            assert (error["code"], error["param"]) == (
                "media_embedding_refused",
                "messages[0].content[1].video_embeds",
            )
            assert any(name in error["message"] for name in ("second_per_grid_ts", "timestamps", "video_grid_thw"))
        assert "what" in answered(await d.chat([first, TEXT]))
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (file(width=EMBEDDING_WIDTH + 1), f"this model takes [tokens, {EMBEDDING_WIDTH}]"),
        (file(tokens=TOKENS - 1), "makes 8 tokens, but the embedding has 7"),
        (file(sides=(1, 4, 4)), "makes 4 tokens"),
        (file(sides=(2, 4, 4)), "at most 1"),
        (file(sides=(1, -4, -8)), "three positive whole numbers"),
        (safetensors(x=floats(TOKENS, EMBEDDING_WIDTH)), "without 'image_grid_thw'"),
        (safetensors(x=floats(EMBEDDING_WIDTH)), "an embedding is [tokens, width]"),
        (safetensors(x=Raw("I32", (8, 8), bytes(256))), "an embedding is of float32"),
        (safetensors(x=Raw("F64", (8, 8), bytes(512))), "an embedding is of float32"),
        (safetensors(x=Raw("U8", (8, 8), bytes(64))), "dtype 'U8'"),
        (safetensors(x=Raw("F32", (8, 8), b"\xff" * 256)), "infinite or not a number"),
        (file()[:-1], "truncated"),
    ],
)
def test_a_wrong_one_is_refused_by_field_and_harms_nobody(running, data, words):
    error = refusal(running.chat([TEXT, RAW, part("image", url_of(data))]))
    assert error["param"] == "messages[0].content[2].image_embeds"
    assert error["code"] in ("media_embedding_refused", "media_damaged")
    assert words in error["message"]
    assert "what" in answered(running.chat([embedded(), TEXT]))


def test_a_picture_is_no_embedding_and_an_embedding_no_picture(running):
    error = refusal(running.chat([part("image", picture_url())]), 415)
    assert (error["code"], "PNG" in error["message"]) == ("media_unsupported", True)
    assert refusal(running.chat([image_part(url_of(file()))]), 415)["code"] == "media_unsupported"


def test_a_kind_that_the_model_does_not_take_is_named(running):
    error = refusal(running.chat([part("audio", url_of(safetensors(x=floats(8, EMBEDDING_WIDTH))))]))
    assert error["code"] == "modality_unsupported"


def test_the_wrong_type_of_the_field_is_named(running):
    error = refusal(running.chat([{"type": "image_embeds", "image_embeds": {"data": "x"}}]))
    assert error["param"] == "messages[0].content[0].image_embeds.url"


async def test_they_come_by_http_and_file_with_a_bound_of_their_own(tmp_path):
    (tmp_path / "good").write_bytes(file())
    (tmp_path / "large").write_bytes(file(tokens=64, sides=(1, 16, 16)))
    site = media_site({"/good": file(), "/large": file(tokens=64, sides=(1, 16, 16))})
    limits = MediaLimits(media_allow_private=True, media_max_embedding_bytes=1024, media_max_bytes=10)
    async with (
        site as url,
        deployment(frontend={**ON, "allowed_local_media_path": str(tmp_path)}, limits=limits) as d,
    ):
        for base in (url, f"file://{tmp_path}"):
            assert "what" in answered(await d.chat([part("image", f"{base}/good"), TEXT]))
            error = refusal(await d.chat([part("image", f"{base}/large"), TEXT]), 413)
            assert "--media-max-embedding-bytes" in error["message"]
        assert refusal(await d.chat([part("image", "file:///etc/passwd")]))["code"] == "media_file_refused"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.event_loop(limit_s=50)
async def test_pt_files_come_from_the_allowed_folder_only(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def saved(tensor):
        out = io.BytesIO()
        torch.save({"image_embeds": tensor, "image_grid_thw": torch.tensor([1, 4, 4])}, out)
        return out.getvalue()

    values = torch.randn(4, EMBEDDING_WIDTH)
    (tmp_path / "good.pt").write_bytes(saved(values))
    (tmp_path / "sparse.pt").write_bytes(saved(values.to_sparse()))
    limits = MediaLimits(media_allow_private=True)
    site = media_site({"/good.pt": saved(values)})
    async with (
        site as url,
        deployment(frontend={**ON, "allowed_local_media_path": str(tmp_path)}, limits=limits) as d,
    ):
        assert "what" in answered(await d.chat([part("image", f"file://{tmp_path}/good.pt"), TEXT]))
        error = refusal(await d.chat([part("image", f"file://{tmp_path}/sparse.pt")]))
        assert (error["code"], "sparse" in error["message"]) == ("media_embedding_refused", True)
        for other in (f"{url}/good.pt", url_of(saved(values))):
            error = refusal(await d.chat([part("image", other)]), 415)
            assert "file: URL only" in error["message"]
        assert "what" in answered(await d.chat([embedded(), TEXT]))
