from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families

from triptych.contracts.errors import WorkerLost
from triptych.observability.metrics import FrontendMetrics


def values(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_histograms_add_up():
    metrics = FrontendMetrics(lambda: 3)
    for seconds in (0.004, 0.005, 0.3, 99):
        metrics.ttft.observe(seconds)
    metrics.itl.observe(0.01, times=10)
    got = values(metrics)
    assert got["triptych_ttft_seconds_bucket", "0.005"] == 2, "a bound holds what equals it"
    assert got["triptych_ttft_seconds_bucket", "0.5"] == 3
    assert got["triptych_ttft_seconds_bucket", "60.0"] == 3
    assert got["triptych_ttft_seconds_bucket", "+Inf"] == got["triptych_ttft_seconds_count",] == 4
    assert abs(got["triptych_ttft_seconds_sum",] - 99.309) < 1e-6
    assert got["triptych_itl_seconds_count",] == 10
    assert abs(got["triptych_itl_seconds_sum",] - 0.1) < 1e-9
    assert got["triptych_requests_in_flight",] == 3


def test_a_clock_times_the_first_token_and_shares_gaps_out():
    metrics = FrontendMetrics(lambda: 0)
    clock = metrics.token_clock(perf_counter() - 0.1)
    clock.tick(2)
    clock.tick(4)
    clock.tick(0)
    clock.finish(10, 6)
    got = values(metrics)
    assert got["triptych_ttft_seconds_count",] == 1
    assert got["triptych_ttft_seconds_sum",] >= 0.1
    assert got["triptych_itl_seconds_count",] == 4
    assert (got["triptych_prompt_tokens_total",], got["triptych_completion_tokens_total",]) == (10, 6)


def test_errors_and_leavers_are_counted():
    metrics = FrontendMetrics(lambda: 0)
    metrics.stream_error(WorkerLost("x"))
    metrics.cancelled()
    metrics.answered("/v1/models", 200)
    got = values(metrics)
    assert got["triptych_stream_errors_total", "worker_lost"] == 1
    assert got["triptych_requests_cancelled_total",] == 1
    assert got["triptych_requests_total", "/v1/models", "200"] == 1


def test_two_frontends_in_one_process_count_apart():
    one, other = FrontendMetrics(lambda: 0), FrontendMetrics(lambda: 0)
    one.cancelled()
    assert values(other)["triptych_requests_cancelled_total",] == 0
