"""Real vLLM, shared: one engine over the wire for all tests here, on a tiny Qwen2-VL with random weights."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support import Served

from support.reference import Reference, make_checkpoint

pytest.importorskip("vllm", reason="vLLM is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(300))
            # Whatever torch, transformers and vLLM say while they are imported into the test's own process.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"))


@pytest.fixture(scope="session", autouse=True)
def forgotten_sockets() -> Iterator[None]:
    """vLLM and torch leave sockets of engines that lived in the test's process to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL of random weights, spread widely enough that greedy tokens vary."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-qwen2-vl")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model in EPD on vLLM, behind the frontend."""
    graph = tmp_path_factory.mktemp("graph") / "epd.yaml"
    graph.write_text(
        json.dumps(
            {
                "model": "tiny",
                "served-model-name": "tiny",
                "frontend": {"enable-multimodal": True},
                "workers": [
                    {
                        "name": "epd",
                        "span": "epd",
                        "engine": "vllm",
                        "args": ["--dtype", "float32", "--max-model-len", "2048"],
                    }
                ],
            }
        )
    )
    deployment = Served(graph, checkpoint)
    yield deployment
    deployment.stop()


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo model, under another name."""
    from triptych.demo import MODEL_DIR

    return Path(shutil.copytree(MODEL_DIR, tmp_path_factory.mktemp("demo") / "shapes"))
