"""The endpoints beside generation: models, health and metrics."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from support.checkpoints import CONTEXT
from support.deployment import deployment
from support.errors import check_error
from support.loops import until_async


def samples(text):
    """(name, sorted labels) -> value."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_models_are_listed_with_what_they_take(demo):
    answer = demo.http.get("/v1/models").json()
    assert answer["object"] == "list"
    [model] = answer["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("demo", "model", "triptych")
    assert isinstance(model["created"], int)
    assert model["max_model_len"] == CONTEXT
    assert model["modalities"] == ["text", "image", "video"]
    assert demo.http.get("/v1/models/demo").json() == model


def test_an_unknown_model_is_404(demo):
    answer = demo.http.get("/v1/models/gone")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def check_later(answer, code):
    """It says 503, and when to try again."""
    error = check_error(answer, 503)
    assert (error["type"], error["code"]) == ("service_unavailable", code)
    assert int(answer.headers["retry-after"]) >= 1
    return error["message"]


async def asked(d, model):
    """Every route that names a model."""
    return [
        await d.chat(model=model),
        await d.chat(model=model, stream=True),
        await d.http.post("/v1/completions", json={"model": model, "prompt": "hi"}),
        await d.http.get(f"/v1/models/{model}"),
    ]


async def test_a_model_that_may_exist_is_503_on_every_route_and_404_only_where_nobody_has_it():
    async with deployment(workers=0, frontend={"expected_models": "slow, slower"}) as d:
        for answer in [*await asked(d, "demo"), *await asked(d, "slow")]:
            assert "no worker" in check_later(answer, "no_worker")
        assert "no worker is alive yet" in check_later(await d.http.get("/ready"), "not_ready")

        worker = await d.add_worker(instance_name="first")
        await d.ready()
        assert [one.status_code for one in await asked(d, "demo")] == [200] * 4
        for answer in await asked(d, "gone"):
            assert check_error(answer, 404)["code"] == "model_not_found"
        for answer in await asked(d, "slower"):
            assert "'slower'" in check_later(answer, "no_worker")

        other = await d.add_worker(name="other", instance_name="second")
        await until_async(lambda: is_served(d, "other"), "the other model is served")
        await worker.drain()
        await until_async(lambda: is_served(d, "demo", 503), "its worker is gone")
        for answer in await asked(d, "demo"):
            assert "no worker for model 'demo' is alive" in check_later(answer, "no_worker")
        assert (await d.http.get("/ready")).status_code == 200, "another model is served"
        await other.kill()
        for answer in await asked(d, "gone"):
            check_error(answer, 404, 503)


async def is_served(d, model, status=200):
    return (await d.http.get(f"/v1/models/{model}")).status_code == status


async def test_a_model_of_encode_workers_only_exists():
    async with deployment(spans=["e"]) as d:
        assert (await d.http.get("/v1/models/demo")).status_code == 200
        assert "no worker with span 'pd'" in check_later(await d.chat(), "no_worker")
        assert "no worker with span 'pd'" in check_later(await d.http.get("/ready"), "not_ready")


async def test_a_model_whose_worker_cannot_be_reached_exists():
    async with deployment() as d:
        await d.ready()
        d.worker.vanish()
        assert (await d.http.get("/v1/models/demo")).status_code == 200
        answer = await d.chat()
        check_error(answer, 503)
        assert answer.headers["retry-after"]
        await d.ready(False)


async def test_a_model_name_with_slashes_is_found():
    async with deployment(name="org/some-model") as d:
        assert (await d.http.get("/v1/models/org/some-model")).json()["id"] == "org/some-model"


async def test_not_ready_for_workers_that_refuse_this_frontend():
    async with deployment(workers=0, token="ours") as d:
        await d.add_worker(token="theirs", instance_name="stranger")

        async def told():
            return (
                "stranger: the worker cannot be reached: it does not know the token"
                in (await d.http.get("/ready")).text
            )

        await until_async(told, "it says who refuses it")
        refused = await d.http.get("/ready")
        assert refused.status_code == 503
        assert refused.json()["error"]["message"].startswith("demo: 1 of 1 workers that are alive cannot")
        health = (await d.http.get("/health")).json()
        assert (health["status"], health["models"]["demo"]["ready"]) == ("not ready", False)
        assert "stranger" in health["models"]["demo"]["problem"]
        await d.add_worker(token="ours")
        await d.ready()


async def test_live_and_ready_follow_the_workers():
    async with deployment(workers=0) as d:
        assert (await d.http.get("/live")).status_code == 200
        refused = await d.http.get("/ready")
        assert refused.status_code == 503, "without a worker there is no complete path"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "not_ready"
        assert (await d.http.get("/v1/models")).json()["data"] == []
        worker = await d.add_worker()
        await d.ready()
        assert (await d.http.get("/live")).status_code == 200
        await worker.drain()
        await d.ready(False)
        assert (await d.http.get("/live")).status_code == 200, "the frontend lives without workers"

        async def dropped():
            return (await d.http.get("/health")).json()["models"]["demo"]["instances"] == []

        await until_async(dropped, "discovery shows that it has left")
        health = (await d.http.get("/health")).json()
        assert health["status"] == "not ready"
        assert health["models"]["demo"]["mode"] is None


async def test_health_names_models_mode_and_instances():
    async with deployment(workers=2) as d:
        await d.ready()
        health = (await d.http.get("/health")).json()
        assert health["status"] == "ready"
        model = health["models"]["demo"]
        assert (model["ready"], model["mode"], model["problem"]) == (True, "EPD", None)
        expected = [
            {
                "id": i.id,
                "name": i.name,
                "span": "epd",
                "capable_span": "epd",
                "engine": "mock",
                "abilities": ["prefilling", "generating", "cache_control"],
                "address": f"{i.host}:{i.port}",
            }
            for i in sorted((w.instance for w in d.workers), key=lambda i: i.id)
        ]
        assert model["instances"] == expected


async def test_two_models_side_by_side_are_told_apart():
    async with deployment() as d:
        await d.add_worker(name="other", engine_args=("--max-model-len", "32"))

        async def both():
            return len((await d.http.get("/v1/models")).json()["data"]) == 2

        await until_async(both, "both models are listed")
        assert (await d.chat("hi", model="other", max_tokens=30)).status_code == 400
        assert (await d.chat("hi", model="other", max_tokens=1)).json()["model"] == "other"
        assert d.workers[1].engine.stats().generated_tokens == 1
        assert d.workers[0].engine.stats().generated_tokens == 0


def test_metrics_parse_and_their_counters_move(demo):
    def scrape():
        answer = demo.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return samples(answer.text)

    before = scrape()
    answer = demo.chat("count me").json()
    demo.chat("and me", stream=True)
    demo.http.post("/v1/chat/completions", content=b"{")
    demo.http.get("/v1/models/whatever/i/make/up")
    demo.http.get("/nowhere/at/all")
    demo.chat("hi", model="made up by a client")
    after = scrape()

    def moved(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    chat = "/v1/chat/completions"
    assert moved("triptych_requests_total", path=chat, status="200", model="demo") == 2
    assert moved("triptych_requests_total", path=chat, status="400", model="") == 1
    assert moved("triptych_requests_total", path="/v1/models/{id}", status="404", model="") == 1
    assert moved("triptych_requests_total", path="other", status="404", model="") == 1, "labels are a bounded set"
    assert moved("triptych_time_to_first_token_seconds_count", model="demo") == 2
    assert moved("triptych_time_to_first_token_seconds_bucket", le="+Inf", model="demo") == 2
    assert moved("triptych_inter_token_latency_seconds_count", model="demo") > 0
    assert moved("triptych_prompt_tokens_total", model="demo") >= answer["usage"]["prompt_tokens"]
    assert moved("triptych_completion_tokens_total", model="demo") >= answer["usage"]["completion_tokens"]
    assert moved("triptych_requests_total", path=chat, status="404", model="") == 1, "clients make no labels"
    assert after["triptych_requests_in_flight", ()] == 0, "a scrape is no work in flight"


def test_a_request_id_comes_back(demo):
    answer = demo.http.get("/live", headers={"x-request-id": "mine-42"})
    assert answer.headers["x-request-id"] == "mine-42"
    assert len(demo.http.get("/live").headers["x-request-id"]) == 32


async def test_an_api_key_guards_v1_and_nothing_else():
    async with deployment(frontend={"api_key": "sesame"}) as d:
        await d.ready()
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
            for path in ("/v1/models", "/v1/models/demo", "/v1/nowhere"):
                refused = await d.http.get(path, headers=headers)
                assert refused.status_code == 401, (path, headers)
                assert refused.json()["error"]["type"] == "authentication_error"
                assert "sesame" not in refused.text
        good = await d.http.get("/v1/models", headers={"authorization": "Bearer sesame"})
        assert good.status_code == 200


def test_timing_is_given_where_it_is_asked_for(demo):
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    plain = demo.http.post("/v1/chat/completions", json=body).json()
    assert "triptych" not in plain
    timed = demo.http.post("/v1/chat/completions", json=body, headers={"x-triptych-timing": "1"}).json()["triptych"]
    assert {"media_s", "tokenise_s", "prefill_s", "decode_s", "total_s"} <= timed["timing"].keys()
    assert timed["plan"].startswith("pd@epd-"), json.dumps(timed)
