"""A frontend that has no checkpoint: it gets tokenizer, template and configs from a worker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from support.checkpoints import copy_demo, image_part, picture_url
from support.deployment import Deployed, deployment
from support.loops import until_async
from support.processes import child
from triptych.models.files import digest_of_files

HERE_ONLY = "/proc/self/cwd/checkpoint"
"""A folder in the working directory of whoever asks: other processes do not have it."""


CHANGED = "its files are not those that it started with; restart it"


def frontend(cache: Path) -> AbstractAsyncContextManager[Deployed]:
    return deployment(workers=0, frontend={"model_files_cache": str(cache)})


def worker(name: str) -> tuple[str, ...]:
    words = ("--engine", "mock", "--served-model-name", "demo", "--instance-name", name, "--transfer", "inproc")
    return ("worker", "--model", HERE_ONLY, *words)


async def test_a_frontend_without_the_checkpoint_serves(tmp_path: Path) -> None:
    there, cache = tmp_path / "there", tmp_path / "cache"
    (there / "checkpoint").mkdir(parents=True)
    copy_demo(there / "checkpoint", chat_template="{% for m in messages %}<{{ m['content'][0]['text'] }}>{% endfor %}")
    assert not Path(HERE_ONLY).exists()
    async with frontend(cache) as d, child(*worker("a"), run_dir=d.run_dir, cwd=there):
        await d.ready()
        answer = await d.chat("hello")
        assert answer.status_code == 200, answer.text
        assert "<hello>" in answer.json()["choices"][0]["message"]["content"], "by the worker's template"
        digest = digest_of_files(there / "checkpoint")
        assert [path.name for path in cache.iterdir()] == [digest]
    before = (cache / digest / "tokenizer.json").stat().st_mtime_ns
    async with frontend(cache) as d, child(*worker("a"), run_dir=d.run_dir, cwd=there):
        await d.ready()
        assert (await d.chat("hello")).status_code == 200
    assert (cache / digest / "tokenizer.json").stat().st_mtime_ns == before, "fetched once"


async def test_pictures_too(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "checkpoint").mkdir(parents=True)
    copy_demo(there / "checkpoint")
    async with frontend(tmp_path / "cache") as d, child(*worker("a"), run_dir=d.run_dir, cwd=there):
        await d.ready()
        answer = await d.chat([image_part(picture_url()), {"type": "text", "text": "red"}])
        assert answer.status_code == 200, answer.text


async def test_files_changed_since_the_start_are_said(tmp_path: Path) -> None:
    """The worker works with what it started with; a frontend must not work with something else."""
    there = tmp_path / "there"
    (there / "checkpoint").mkdir(parents=True)
    copy_demo(there / "checkpoint")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    # The worker has a run directory of its own: the frontend does not see it before its files have changed.
    async with (
        frontend(tmp_path / "cache") as d,
        child(*worker("a"), run_dir=run_dir, cwd=there, env={"TRIPTYCH_TOKEN": d.token}),
    ):
        (there / "checkpoint" / "generation_config.json").write_text('{"temperature": 0.1}')
        [file] = (run_dir / "default" / "instances").glob("*.json")
        (d.run_dir / "default" / "instances" / file.name).write_bytes(file.read_bytes())

        async def said() -> bool:
            answer = await d.chat("hello")
            return answer.status_code == 503 and CHANGED in answer.text

        await until_async(said, "the client is told")
    assert not (tmp_path / "cache").exists(), "nothing of it is kept"
