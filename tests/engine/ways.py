"""The ways in which a model can be served: a mode, and who encodes. Deployments of each, on vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_support import Served

SPANS = {"EPD": ["epd"], "EP/D": ["ep", "d"], "E/PD": ["e", "pd"], "E/P/D": ["e", "p", "d"]}
VLLM = ["--dtype", "float32", "--max-model-len", "2048"]

COUNT_TIME = ("qwen2_vl", "qwen2_5_vl")
"""Families whose text stands elsewhere in transformers than in vLLM after a video that is longer than wide."""
TIME_NOTE = (
    "after a video of more positions in time than rows and columns of tokens, compared with `generate` under the "
    "numbering of the model's paper, which is vLLM's ([api.md](api.md#parameters))"
)


class Way(NamedTuple):
    mode: str
    encoder: str
    """vLLM's ``inside`` of the worker that prefills, our ``own``, or vLLM's behind its EC connector: ``ec``."""

    @property
    def name(self) -> str:
        return f"{self.mode} {self.encoder}"

    @property
    def spans(self) -> list[str]:
        return SPANS[self.mode]

    def graph(self, store: Path, args: Sequence[str] = VLLM, **frontend: Any) -> dict[str, Any]:
        """No worker stands in for another: each stage is done where the mode puts it, or fails and says why.

        ``frontend``: more of its flags, with underscores.
        """
        shared = ["--ec-storage-path", str(store)] if self.encoder == "ec" else []
        workers: list[dict[str, Any]] = []
        for span in self.spans:
            words = [*args, *(shared if span != "d" else [])]
            own = (span, self.encoder) == ("e", "own")
            engine = {"engine": "encoder"} if own else {"engine": "vllm", "args": words}
            workers.append({"name": span, "span": span, "fallback": False, **engine})
        flags = {"enable-multimodal": True, "plan-header": True}
        flags |= {name.replace("_", "-"): value for name, value in frontend.items()}
        return {"model": "tiny", "served-model-name": "tiny", "frontend": flags, "workers": workers}

    def deploy(self, checkpoint: Path, folder: Path, args: Sequence[str] = VLLM, **frontend: Any) -> Served:
        """``folder``: an empty one for the deployment's files. The rest as in ``graph``."""
        (folder / "store").mkdir()
        (folder / "graph.yaml").write_text(json.dumps(self.graph(folder / "store", args, **frontend)))
        return Served(folder / "graph.yaml", checkpoint)


WAYS = [
    Way("EPD", "inside"),
    Way("EP/D", "inside"),
    Way("E/PD", "own"),
    Way("E/PD", "ec"),
    Way("E/P/D", "own"),
    Way("E/P/D", "ec"),
]


def ways(by_default: Collection[str], ways: Sequence[Way] = WAYS) -> list[Any]:
    """Parameters of a fixture: those ``by_default`` (by name), and the others marked ``full``."""
    assert set(by_default) <= {way.name for way in ways}
    return [pytest.param(way, id=way.name, marks=[] if way.name in by_default else pytest.mark.full) for way in ways]


def matrix(by_default: Mapping[str, Collection[str]], ways: Sequence[Way] = WAYS) -> list[Any]:
    """The same of (family, way)."""
    return [
        pytest.param((family, way), id=f"{family} {way.name}", marks=[] if way.name in chosen else pytest.mark.full)
        for family, chosen in by_default.items()
        for way in ways
    ]
