from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families

from triptych.contracts.errors import WorkerLost
from triptych.observability.metrics import FrontendMetrics


def values(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_histogram_buckets_are_cumulative():
    metrics = FrontendMetrics(lambda: 3)
    for seconds in (0.004, 0.005, 0.3, 99):
        metrics.of_model("demo").ttft.observe(seconds)
    metrics.of_model("demo").itl.observe(0.01, times=10)
    got = values(metrics)
    assert got["triptych_time_to_first_token_seconds_bucket", "0.005", "demo"] == 2, "a bound holds what equals it"
    assert got["triptych_time_to_first_token_seconds_bucket", "0.5", "demo"] == 3
    assert got["triptych_time_to_first_token_seconds_bucket", "60.0", "demo"] == 3
    assert (
        got["triptych_time_to_first_token_seconds_bucket", "+Inf", "demo"]
        == got["triptych_time_to_first_token_seconds_count", "demo"]
        == 4
    )
    assert abs(got["triptych_time_to_first_token_seconds_sum", "demo"] - 99.309) < 1e-6
    assert got["triptych_inter_token_latency_seconds_count", "demo"] == 10
    assert abs(got["triptych_inter_token_latency_seconds_sum", "demo"] - 0.1) < 1e-9
    assert got["triptych_requests_in_flight",] == 3


def test_a_token_clock_times_the_first_token_and_divides_gaps():
    metrics = FrontendMetrics(lambda: 0)
    clock = metrics.of_model("demo").token_clock(perf_counter() - 0.1)
    clock.tick(2)
    clock.tick(4)
    clock.tick(0)
    clock.finish(10, 6)
    got = values(metrics)
    assert got["triptych_time_to_first_token_seconds_count", "demo"] == 1
    assert got["triptych_time_to_first_token_seconds_sum", "demo"] >= 0.1
    assert got["triptych_inter_token_latency_seconds_count", "demo"] == 4
    assert (got["triptych_prompt_tokens_total", "demo"], got["triptych_completion_tokens_total", "demo"]) == (10, 6)


def test_errors_and_cancelled_requests_are_counted():
    metrics = FrontendMetrics(lambda: 0)
    metrics.of_model("demo").stream_error(WorkerLost("x"))
    metrics.cancelled()
    metrics.answered("/v1/models", 200)
    got = values(metrics)
    assert got["triptych_stream_errors_total", "demo", "worker_lost"] == 1
    assert got["triptych_requests_cancelled_total", ""] == 1
    assert got["triptych_requests_total", "", "/v1/models", "200"] == 1


def test_two_frontends_in_one_process_count_separately():
    one, other = FrontendMetrics(lambda: 0), FrontendMetrics(lambda: 0)
    one.cancelled()
    assert ("triptych_requests_cancelled_total", "") not in values(other)
