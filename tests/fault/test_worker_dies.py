"""A worker that is killed, breaks off or stops: every request still ends, with its answer or one clear error."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import aclosing
from dataclasses import replace

from support.checkpoints import copy_demo
from support.deployment import FAST, chat_body, deployment
from support.loops import SOON_S, until, until_async
from support.processes import child, mock_worker
from support.raw_http import connected, post, response
from support.sse import parse
from triptych.planes.discovery.local import LocalDiscovery
from triptych.planes.request.limits import WireLimits
from triptych.processor.processor import Processor


async def reading(response_bytes, marker=b"data: ", count=1):
    """Lines of a streamed response as far as ``count`` events."""
    seen = b""
    async for chunk in response_bytes:
        seen += chunk
        if seen.count(marker) >= count:
            return seen
    raise AssertionError(f"the stream ended early: {seen!r}")


def check_unavailable(answer):
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1, "503 says when to try again"
    error = answer.json()["error"]
    assert error["type"] == "service_unavailable"
    return error


async def test_killed_in_the_middle_of_streams():
    """``kill -9``: the other worker goes on with its streams."""
    async with deployment(workers=0) as d:
        slow = ("--itl-ms", "5")
        async with (
            child(*mock_worker("--name", "doomed", engine=slow), run_dir=d.run_dir) as doomed,
            child(*mock_worker("--name", "good", engine=slow), run_dir=d.run_dir),
        ):
            await _instances(d, 2)

            async def one(number):
                async with d.http.stream(
                    "POST",
                    "/v1/chat/completions",
                    json=chat_body(f"{number}", stream=True, ignore_eos=True, max_tokens=300),
                ) as answer:
                    events = answer.aiter_raw()
                    seen = await reading(events)
                    started.append(number)
                    return parse(seen + b"".join([chunk async for chunk in events]))

            started = []
            tasks = [asyncio.create_task(one(number)) for number in range(8)]
            await until(lambda: len(started) == 8, "all streams are under way")
            doomed.signal(signal.SIGKILL)
            streams = await asyncio.gather(*tasks)
            for number, stream in enumerate(streams):
                assert stream.error is None
                assert (stream.done, stream.finish_reason()) == (True, "length")
                words = f"user\n{number}\nassistant\n"
                assert stream.text().startswith(words)
                assert stream.text() in words * 300, "nothing is lost, nothing is said twice"
            resumed = (await d.http.get("/metrics")).text.partition("\ntriptych_requests_resumed_total ")[2]
            assert resumed.startswith("4.0"), "the least loaded was picked, so each worker had half of them"
            await _instances(d, 1)
            assert (await d.chat("after")).status_code == 200


async def test_killed_in_the_middle_of_a_whole_answer():
    async with deployment(workers=0) as d:
        engine = ("--itl-ms", "5", "--crash-after-tokens", "10")
        async with child(*mock_worker(engine=engine), run_dir=d.run_dir) as worker:
            await d.ready()
            error = check_unavailable(await d.chat(ignore_eos=True, max_tokens=100))
            assert error["code"] == "worker_lost"
            assert await worker.ended() == -signal.SIGKILL, "the mock crashed as told"


async def test_killed_before_the_first_token_the_request_goes_elsewhere():
    async with deployment(workers=0) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*mock_worker("--name", "a", engine=("--prefill-ms", "20000")), run_dir=d.run_dir) as slow:
            await d.ready()
            waiting = [asyncio.create_task(d.chat(f"{n}", stream=n % 2 == 0)) for n in range(6)]
            await until(lambda: d.dispatcher.in_flight == 6, "all six requests are at the slow worker")
            await d.add_worker()
            await _instances(d, 2)
            slow.signal(signal.SIGKILL)
            for number, answer in enumerate(await asyncio.gather(*waiting)):
                assert answer.status_code == 200, answer.text
                text = (
                    parse(answer.content).text()
                    if number % 2 == 0
                    else answer.json()["choices"][0]["message"]["content"]
                )
                assert text == f"user\n{number}\nassistant\n"


async def test_another_model_at_the_port_of_a_killed_worker_gets_none_of_its_requests():
    """Discovery cannot know yet that the first one is dead."""
    async with deployment(workers=0) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*mock_worker("--served-model-name", "old"), run_dir=d.run_dir) as old:
            await d.ready()
            old.kill()
            new = await d.add_worker(name="new", port=int(old.ready.rsplit(":", 1)[1]))
            assert check_unavailable(await d.chat(model="old"))["code"] == "worker_lost"
            assert new.counts["engine_generated_tokens_total"] == 0
            await _known(d, "new")
            assert (await d.chat(model="new")).status_code == 200


async def test_nobody_else_is_there():
    async with deployment(engine_args=("--prefill-ms", "20000")) as d:
        waiting = [asyncio.create_task(d.chat(stream=stream)) for stream in (True, False)]
        await d.worker.busy(2)
        await d.worker.kill()
        for answer in await asyncio.gather(*waiting):
            check_unavailable(answer)
        await _instances(d, 0)
        assert check_unavailable(await d.chat())["code"] == "no_worker"


async def test_a_connection_that_breaks_midway_is_not_waited_for():
    async with deployment(engine_args=("--itl-ms", "10")) as d:
        body = chat_body("again?", stream=True, ignore_eos=True, max_tokens=30)
        async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.aiter_raw()
            seen = await reading(events, count=3)
            await d.add_worker()
            await _instances(d, 2)
            d.worker.break_connections()
            stream = parse(seen + b"".join([chunk async for chunk in events]))
        assert stream.error is None
        assert stream.done
        assert d.workers[1].engine.stats().generated_tokens > 20, "the other one went on"
        assert (await d.chat("next")).status_code == 200


async def test_an_error_in_one_of_several_choices_ends_them_all():
    """Under a penalty none can go on elsewhere."""
    async with deployment(workers=2, engine_args=("--itl-ms", "10")) as d:
        body = chat_body("x", stream=True, n=4, ignore_eos=True, max_tokens=1000, presence_penalty=1)
        async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.aiter_raw()
            seen = await reading(events, count=8)
            await d.workers[0].kill()
            stream = parse(seen + b"".join([chunk async for chunk in events]))
        assert stream.error["code"] == "worker_lost"
        assert stream.done
        await d.workers[1].idle()


async def test_a_worker_that_comes_back_is_used_without_touching_the_frontend():
    async with deployment(workers=0) as d:
        for _ in range(2):
            async with child(*mock_worker(), run_dir=d.run_dir) as worker:
                await _served(d)
                worker.signal(signal.SIGKILL)
                await worker.ended()
            check_unavailable(await d.chat("hi"))


async def test_a_stopped_worker_is_given_up():
    """SIGSTOP: the kernel still accepts bytes for it, only its silence tells."""
    limits = {"wire": WireLimits(keepalive_s=0.2, silence_s=1.0), "pace": replace(FAST, stale_s=1.0, starved_s=1.0)}
    async with deployment(workers=0, **limits) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*mock_worker(engine=("--itl-ms", "10")), run_dir=d.run_dir) as worker:
            await d.ready()
            body = chat_body("x", stream=True, ignore_eos=True, max_tokens=4000)
            async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                events = answer.aiter_raw()
                seen = await reading(events, count=3)
                worker.signal(signal.SIGSTOP)
                stream = parse(seen + b"".join([chunk async for chunk in events]))
            assert stream.error["code"] == "worker_lost"
            assert stream.done
            check_unavailable(await d.chat("next"))
            worker.signal(signal.SIGCONT)
            await d.ready()

            await _served(d)  # it woke up; who broke off is excluded for a moment


async def test_a_stopped_worker_gets_no_requests_while_another_lives():
    """Long before anybody gives it up."""
    limits = {"wire": WireLimits(keepalive_s=0.1, silence_s=60), "pace": replace(FAST, stale_s=60, starved_s=60)}
    async with (
        deployment(workers=0, **limits) as d,
        child(*mock_worker("--name", "stopped"), run_dir=d.run_dir) as worker,
    ):
        await d.ready()
        assert (await d.chat("x")).status_code == 200
        await d.add_worker()
        await _instances(d, 2)
        worker.signal(signal.SIGSTOP)
        calls = d.dispatcher._calls
        (stopped,) = [one for one in await _registered(d) if one != d.worker.instance]
        await until(lambda: calls.is_silent(stopped), "it has not answered a ping")
        async with asyncio.timeout(SOON_S):
            answers = await asyncio.gather(*(d.chat(f"{n}") for n in range(8)))
        assert all(answer.status_code == 200 for answer in answers)
        worker.signal(signal.SIGCONT)
        await until(lambda: not calls.is_silent(stopped), "it answers again")


async def test_a_worker_that_says_nothing_is_given_up():
    """Alive and connected, but its engine is stuck: the limit of silence holds."""
    async with deployment(engine_args=("--prefill-ms", "60000"), frontend={"response_timeout_s": 0.3}) as d:
        for stream in (False, True):
            answer = await d.chat(stream=stream)
            assert answer.status_code == 504, answer.text
            assert answer.json()["error"]["type"] == "timeout_error"
            assert "0.3 s" in answer.json()["error"]["message"]
        await d.worker.idle()


async def test_a_full_worker_hands_over_to_another():
    async with deployment(engine_args=("--prefill-ms", "20000"), max_in_flight=1) as d:
        waiting = asyncio.create_task(d.chat())
        await d.worker.busy()
        refused = await d.chat()
        assert refused.status_code in (429, 503)
        assert int(refused.headers["retry-after"]) >= 1
        await d.add_worker()
        await _instances(d, 2)
        assert (await d.chat()).status_code == 200
        waiting.cancel()
        await asyncio.wait([waiting])
        await d.worker.idle()


async def test_no_request_is_sent_to_a_full_worker_while_another_has_room():
    """Tried by chance, three of eight, full ones would be met often."""
    held = ("--prefill-ms", "20000")
    async with deployment(workers=6, engine_args=held, max_in_flight=1, frontend={"router_policy": "random"}) as d:
        waiting = [asyncio.create_task(d.chat(f"{number}")) for number in range(8)]
        await until(lambda: all(one.running == 1 for one in d.workers), "each has one")
        refused = await d.chat()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_broken_checkpoint_of_one_worker_harms_no_other(tmp_path, monkeypatch):
    """Its files are read by the frontend too: what is wrong with them is told in /health, and no more."""
    folder = copy_demo(tmp_path)
    async with deployment() as d:
        (folder / "tokenizer.json").write_text('{"broken": true}')
        await d.add_worker(model=folder, name="broken")

        assert "tokenizer.json cannot be read" in await _problem(d, "broken")
        assert (await d.chat("good")).status_code == 200
        answer = await d.http.post("/v1/chat/completions", json=chat_body(model="broken"))
        assert check_unavailable(answer)
        monkeypatch.setattr(Processor, "load", lambda *_: 1 / 0)
        await d.add_worker(name="surprising")
        assert "log has the cause" in await _problem(d, "surprising")
        assert (await d.chat("still good")).status_code == 200


async def _problem(deployed, model):
    """What /health says is wrong with ``model``, once it says so."""

    async def told():
        models = (await deployed.http.get("/health")).json()["models"]
        return models.get(model, {}).get("problem")

    return await _eventually(told)


async def _eventually(condition):
    return await until_async(condition, "what is waited for is there")


async def _served(deployed):
    async def served():
        return (await deployed.chat("hi")).status_code == 200

    await until_async(served, "requests are answered again")


async def _known(deployed, model):
    async def known():
        models = (await deployed.http.get("/health")).json()["models"]
        return models.get(model, {}).get("instances")  # it is named as soon as its files are being read

    await _eventually(known)


async def _registered(deployed):
    async with aclosing(LocalDiscovery(deployed.run_dir, "default").watch()) as snapshots:
        return await anext(snapshots)


async def _instances(deployed, count):
    async def reached():
        models = (await deployed.http.get("/health")).json()["models"]
        return len(models.get("demo", {}).get("instances", ())) == count

    await _eventually(reached)


async def test_nothing_of_a_kept_connection_is_lost_when_the_worker_dies():
    """A client on one connection sees error, then good answers, on that same connection."""
    async with deployment(engine_args=("--itl-ms", "5")) as d, connected(d.port) as (reader, writer):
        body = json.dumps(chat_body("x", ignore_eos=True, max_tokens=2000)).encode()
        writer.write(post("/v1/chat/completions", body))
        await d.worker.made(3)
        await d.worker.kill()
        status, headers, _ = await response(reader)
        assert (status, "retry-after" in headers) == (503, True)
        await _instances(d, 0)
        await d.add_worker()
        await _instances(d, 1)
        writer.write(post("/v1/chat/completions", json.dumps(chat_body("y")).encode()))
        assert (await response(reader))[0] == 200
