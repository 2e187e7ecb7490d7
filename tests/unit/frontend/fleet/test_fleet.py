import asyncio
import errno
import threading

import msgspec
import pytest

from support.instances import CARD, instance
from support.loops import until
from triptych.contracts.card import ModelCard
from triptych.contracts.errors import ConfigError, NotFound, Unavailable
from triptych.frontend.fleet import model_registry, processors
from triptych.frontend.fleet.fleet import Fleet
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.fleet.processors import ProcessorLoader

OTHER = ModelCard(name="other", path="/other", context_length=5)


class Snapshots:
    """Discovery that shows what this test says."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.shown = 0
        self.doubts = {}

    def doubt(self, model):
        return self.doubts.get(model)

    async def watch(self):
        while True:
            yield await self.queue.get()
            self.shown += 1

    async def show(self, *instances):
        count = self.shown + 1
        await self.queue.put(tuple(instances))
        await until(lambda: self.shown == count, "the snapshot was taken in")


class InPlace:
    """Files that are where the card says."""

    async def local(self, card):
        return card.path


def fleet_of(discovery, load, on_gone=lambda one: None, files=None, **known):
    """A fleet, and the registry of its models."""
    registry = ModelRegistry(ProcessorLoader(load, files or InPlace()), **known)
    return Fleet(discovery, registry, on_gone), registry


async def follow(test, load=lambda card: f"processor of {card.name}", files=None, expected=()):
    snapshots, gone = Snapshots(), []
    fleet, registry = fleet_of(snapshots, load, gone.append, files, expected=expected, doubt=snapshots.doubt)
    task = asyncio.create_task(fleet.follow())
    try:
        await test(registry, snapshots, gone)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_models_come_and_go():
    async def test(registry, snapshots, gone):
        with pytest.raises(Unavailable, match="no worker is alive yet"):
            registry.get("demo")
        await snapshots.show(instance("a"), instance("b"), instance("c", model=OTHER))
        model, processor = registry.get("demo")
        assert [one.id for one in model.instances] == ["a", "b"]
        assert processor == "processor of demo"
        with pytest.raises(NotFound, match="served here: demo, other"):
            registry.get("nope")
        await snapshots.show(instance("b"))
        assert sorted(one.id for one in gone) == ["a", "c"]
        with pytest.raises(Unavailable, match="no worker for model 'other'") as caught:
            registry.get("other")
        assert caught.value.retry_after_s
        assert registry.ready
        await snapshots.show()
        assert not registry.ready
        with pytest.raises(Unavailable, match="no worker is alive yet"):
            registry.get("nope")

    await follow(test)


async def test_a_model_is_missing_only_where_that_is_certain():
    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        with pytest.raises(Unavailable, match="no worker for model 'slow'") as caught:
            registry.find("slow")
        assert (caught.value.code, caught.value.retry_after_s) == ("no_worker", 2.0)
        snapshots.doubts["other"] = "NATS is away"
        with pytest.raises(Unavailable, match="NATS is away") as caught:
            registry.find("other")
        assert (caught.value.code, caught.value.retry_after_s) == ("discovery_unsettled", 2.0)
        snapshots.doubts.clear()
        with pytest.raises(NotFound, match="served here: demo"):
            registry.find("other")

    await follow(test, expected=["slow"])


async def test_few_models_without_workers_are_kept_and_their_names_for_longer(monkeypatch):
    monkeypatch.setattr(model_registry, "MAX_GONE_MODELS", 2)

    async def test(registry, snapshots, gone):
        for name in "abcd":
            await snapshots.show(instance("x"), instance(name, model=msgspec.structs.replace(OTHER, name=name)))
        await snapshots.show(instance("x"))
        assert sorted(registry.models) == ["c", "d", "demo"]
        for name in "abcd":
            with pytest.raises(Unavailable, match="no worker"):
                registry.find(name)

    await follow(test)


async def test_a_model_that_waits_for_another_one_to_be_loaded_exists():
    go = threading.Event()

    def load(card):
        go.wait(5)
        return "processor"

    async def test(registry, snapshots, gone):
        await snapshots.queue.put((instance("a"), instance("b", model=OTHER)))
        await until(lambda: registry.models, "they are known")
        for name in ("demo", "other"):
            for ask in (registry.get, registry.find):
                with pytest.raises(Unavailable, match="being loaded") as caught:
                    ask(name)
                assert caught.value.code == "model_not_loaded"
        go.set()
        await until(lambda: registry.ready, "it is loaded")

    await follow(test, load)


async def test_a_long_name_is_not_repeated():
    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        with pytest.raises(NotFound) as caught:
            registry.find("x" * 10_000_000)
        assert len(caught.value.message) < 300

    await follow(test)


async def test_ready_needs_workers_that_can_be_spoken_to():
    troubles = {"b": "TLS: certificate has expired"}
    snapshots = Snapshots()
    fleet, registry = fleet_of(snapshots, lambda card: "processor", trouble=lambda one: troubles.get(one.id))
    task = asyncio.create_task(fleet.follow())
    await snapshots.show(instance("a", "e"), instance("b", "pd"))
    model, _ = registry.get("demo")
    assert not registry.ready
    assert (
        model.why_unavailable("pd")
        == "1 of 2 workers that are alive cannot be spoken to: b: TLS: certificate has expired"
    )
    await snapshots.show(instance("a", "e"), instance("b", "pd"), instance("c", "pd"))
    assert registry.ready, "one is enough"
    await snapshots.show(instance("a", "e"))
    assert "span" in registry.get("demo")[0].why_unavailable("pd"), "what is missing is told first"
    task.cancel()
    await asyncio.wait([task])


async def test_ready_needs_a_complete_path():
    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a", "e"))
        assert not registry.ready
        await snapshots.show(instance("a", "e"), instance("b", "pd"))
        assert registry.ready
        assert [mode.value for mode in registry.get("demo")[0].modes] == ["E/PD"]

    await follow(test)


async def test_a_processor_is_loaded_once_and_again_for_another_card():
    loaded = []

    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        await snapshots.show(instance("a"), instance("b"))
        await snapshots.show()
        await snapshots.show(instance("c"))
        assert len(loaded) == 1
        longer = ModelCard(name="demo", path=CARD.path, context_length=9999)
        await snapshots.show(instance("d", model=longer))
        assert loaded == [CARD, longer]
        assert registry.get("demo")[0].card == longer

    await follow(test, load=lambda card: loaded.append(card) or "processor")


@pytest.mark.parametrize(("error", "told"), [(ConfigError("no tokenizer"), "no tokenizer"), (KeyError("x"), "log has")])
async def test_a_model_that_cannot_be_loaded_is_told_and_the_others_are_served(error, told):
    def load(card):
        if card.name == "other":
            raise error
        return "processor"

    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"), instance("c", model=OTHER))
        assert registry.ready
        with pytest.raises(Unavailable, match=told):
            registry.get("other")
        assert told in registry.models["other"].problem
        assert registry.find("other").instances, "its workers are there"
        await snapshots.show(instance("a"))
        with pytest.raises(Unavailable, match="no worker for model 'other'"):
            registry.find("other")

    await follow(test, load)


async def test_leaving_closes_the_watch():
    closed = []

    class Watched:
        async def watch(self):
            try:
                yield ()
                await asyncio.Event().wait()
            finally:
                closed.append(True)

    fleet, _ = fleet_of(Watched(), lambda card: None)
    task = asyncio.create_task(fleet.follow())
    await fleet.first_snapshot.wait()
    task.cancel()
    await asyncio.wait([task])
    assert closed


async def test_a_model_whose_processor_is_being_loaded_says_so():
    begun, go = threading.Event(), threading.Event()

    def load(card):
        begun.set()
        go.wait(5)
        return "processor"

    async def test(registry, snapshots, gone):
        await snapshots.queue.put((instance("a"),))
        await until(begun.is_set, "the load began")
        with pytest.raises(Unavailable, match="being loaded"):
            registry.get("demo")
        go.set()
        await until(lambda: registry.ready, "it is loaded")

    await follow(test, load)


class Files:
    """Nothing is on this host; workers answer as this test says."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.go = asyncio.Event()

    async def local(self, card):
        return None

    async def fetch(self, card, instances):
        self.asked.append([one.id for one in instances])
        await self.go.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_files_come_in_the_background_and_are_asked_for_again(monkeypatch):
    monkeypatch.setattr(processors, "FETCH_AGAIN_S", 0.01)
    files = Files(Unavailable("w: busy"), ConfigError("the disk is full"), "/cache/files")

    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        with pytest.raises(Unavailable, match="being fetched from a worker"):
            registry.get("demo")
        await snapshots.show(instance("a"), instance("b"))
        assert [one.id for one in registry.models["demo"].instances] == ["a", "b"], "workers come and go meanwhile"
        files.go.set()
        await until(lambda: registry.ready, "it is served")
        assert registry.get("demo")[1] == "/cache/files"
        assert registry.models["demo"].card == CARD, "the card stays what the worker says"
        assert files.asked[-1] == ["a", "b"]
        assert len(files.asked) == 3

    await follow(test, lambda card: card.path, files)


async def test_a_shortage_of_the_machine_is_not_the_files_fault(monkeypatch):
    monkeypatch.setattr(processors, "FETCH_AGAIN_S", 0.01)
    errors = [MemoryError(), OSError(errno.EMFILE, "Too many open files")]

    def load(card):
        if errors:
            raise errors.pop()
        return "processor"

    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        with pytest.raises(Unavailable, match="open files"):
            registry.get("demo")
        await until(lambda: registry.ready, "it is served")
        assert not errors

    await follow(test, load)


async def test_no_worker_no_fetch():
    files = Files(Unavailable("w: gone"))

    async def test(registry, snapshots, gone):
        await snapshots.show(instance("a"))
        await until(lambda: files.asked, "it is asked")
        await snapshots.show()
        files.go.set()
        files.answers += ["/cache/files"]
        await until(lambda: not registry._processors.is_busy("demo"), "the fetch gave up")
        assert len(files.asked) == 1
        await snapshots.show(instance("b"))
        await until(lambda: registry.ready, "and begins again with the next worker")

    await follow(test, lambda card: card.path, files)


async def test_equal_files_in_different_places_are_loaded_once():
    loaded = []

    async def test(registry, snapshots, gone):
        for path, digest in (("/x", "1"), ("/y", "1"), ("/y", "2"), ("/z", "")):
            card = msgspec.structs.replace(CARD, path=path, files_digest=digest)
            await snapshots.show(instance("a", model=card))
            await snapshots.show(instance("a", model=card))
        assert loaded == ["/x", "/y", "/z"]

    await follow(test, lambda card: loaded.append(card.path) or "processor")


async def test_limits_are_those_of_the_workers_that_make_tokens_and_hold_at_each_of_them():
    def card(context_length, max_logprobs=20):
        return msgspec.structs.replace(CARD, context_length=context_length, max_logprobs=max_logprobs)

    async def test(registry, snapshots, gone):
        limits = []
        for fleet in (
            (instance("enc", "e", model=card(32768)), instance("pd", "pd", model=card(2048, -1))),
            (instance("a", model=card(4096, -1)), instance("b", model=card(1024, 5))),
            (instance("a", model=card(4096, -1)),),
        ):
            await snapshots.show(*fleet)
            model, processor = registry.get("demo")
            assert processor == model.card, "requests are checked by it"
            limits.append((model.card.context_length, model.card.max_logprobs))
        assert limits == [(2048, -1), (1024, 5), (4096, -1)]

    await follow(test, load=lambda card: card)
