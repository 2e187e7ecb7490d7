"""What the docs say must be what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("script", ["fields.py", "flags.py", "support_matrix.py"])
def test_written_pages_are_up_to_date(script: str) -> None:
    check = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


def test_the_request_path_names_real_files() -> None:
    text = (ROOT / "docs" / "request-path.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text)
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / "src" / "triptych" / name).exists()]
    assert not missing


def test_metrics_in_the_docs_are_those_of_the_code() -> None:
    from triptych.cache.embedding import EmbeddingCache
    from triptych.cache.memory_budget import MemoryBudget
    from triptych.config.http import HttpConfig
    from triptych.config.media import MediaLimits
    from triptych.engines.base import EngineStats
    from triptych.engines.vllm.grammar.checker import GrammarChecker
    from triptych.frontend.http.admission import Admission
    from triptych.frontend.http.connections import Connections
    from triptych.frontend.http.in_flight import InFlight
    from triptych.media.decoder import MediaDecoder
    from triptych.observability.lag import LoopLag
    from triptych.observability.metrics import FrontendMetrics
    from triptych.planes.request.tcp_client import TcpRequestClient
    from triptych.processor.text_work import TextWork
    from triptych.runtime.metrics import worker_metrics
    from triptych.stages.dispatch import Dispatcher
    from triptych.transfer.base import TransferStats

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(triptych_[a-z_]+)(?:\{[a-z,]+\})?`", text))
    exposed = set(re.findall(rb"# TYPE (triptych_[a-z_]+) (?!gauge\n.*_created)", FrontendMetrics(lambda: 0).text()))
    of_media = MediaDecoder(MediaLimits()).metrics()
    of_grammars = tuple(GrammarChecker(trials=1, step_budget_s=1.0).metrics())
    stats = EngineStats(media=of_media, grammars=of_grammars)
    of_workers = [*worker_metrics(stats, EmbeddingCache(0), TransferStats()), *LoopLag().metrics()]
    names = {name.decode() for name in exposed if not name.endswith(b"_created")}
    dispatcher = Dispatcher(TcpRequestClient(), 1.0)
    of_frontends = [*Admission(0, 1, 1.0).metrics(), *MemoryBudget(1).metrics(), *dispatcher.metrics()]
    of_frontends += [*InFlight(1).metrics(), *TextWork().metrics(), *Connections(HttpConfig()).metrics()]
    names |= {one.name + "_total" * (one.kind == "counter") for one in (*of_workers, *of_frontends)}
    assert documented == names
