"""Makes every part that counts something, and returns the metrics of all of them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from triptych.cache.embedding import EmbeddingCache
from triptych.cache.memory_budget import MemoryBudget
from triptych.config.http import HttpConfig
from triptych.config.media import MediaLimits
from triptych.contracts.card import Instance
from triptych.contracts.errors import WorkerLost
from triptych.contracts.metric import Metric
from triptych.engines.base import EngineStats
from triptych.engines.vllm.grammar.checker import GrammarChecker
from triptych.frontend.fleet.quarantine import SharedQuarantine, bucket
from triptych.frontend.http.admission import Admission
from triptych.frontend.http.connections import Connections
from triptych.frontend.http.in_flight import InFlight
from triptych.media.decoder import MediaDecoder
from triptych.observability.lag import LoopLag
from triptych.observability.metrics import FrontendMetrics
from triptych.observability.workers import families_of
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.state.memory import MemoryState, MemoryStore
from triptych.processor.text_work import TextWork
from triptych.runtime.metrics import worker_metrics
from triptych.stages.dispatch import Dispatcher
from triptych.stages.isolation import Isolation
from triptych.transfer.base import TransferStats


def of_workers() -> list[Metric]:
    """Returns all metrics that a worker can have."""
    media = MediaDecoder(MediaLimits()).metrics()
    grammars = tuple(GrammarChecker(trials=1, step_budget_s=1.0).metrics())
    stats = EngineStats(media=media, grammars=grammars)
    return [*worker_metrics(stats, EmbeddingCache(0), TransferStats()), *LoopLag().metrics()]


def frontend_metrics() -> FrontendMetrics:
    """Returns a frontend's metrics, put together as ``cli.serving`` does it, after a request of the model ``demo``."""
    metrics = FrontendMetrics(lambda: 0)
    for read in (
        Admission(0, 1, 1.0).metrics,
        MemoryBudget(1).metrics,
        InFlight(1).metrics,
        TextWork().metrics,
        Connections(HttpConfig()).metrics,
        Dispatcher(TcpRequestClient(), 1.0).metrics,
        MediaDecoder(MediaLimits()).sandbox.metrics,
        LoopLag().metrics,
        SharedQuarantine(Isolation(), MemoryState(MemoryStore(), bucket(1)), 1).metrics,
    ):
        metrics.add_source(read)
    model = metrics.of_model("demo")
    clock = model.token_clock(0.0)
    clock.tick(1)
    clock.tick(1)
    clock.finish(1, 2)
    model.planned("epd")
    model.stream_error(WorkerLost("gone"))
    metrics.answered("/v1/chat/completions", 200, model.label)
    metrics.cancelled(model.label)
    return metrics


def exposition(instance: Instance) -> str:
    """Returns what a scrape of a frontend answers that has one worker."""
    return frontend_metrics().text(families_of([(instance, of_workers())])).decode()


def parsed(text: str) -> dict[tuple[str, str], list[Sample]]:
    """Returns the samples by their family's name, as its TYPE line has it, and type."""
    types = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE")]
    families = text_string_to_metric_families(text)
    return {(name, kind): family.samples for (name, kind), family in zip(types, families, strict=True)}
