"""Writes docs/configuration.md's tables from the configuration models: ``python scripts/flags.py``.

A test runs this with ``--check``, so that the page always agrees with ``--help``.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import get_type_hints

import msgspec
from written_page import write_or_check

from triptych.cli.options import flag, unwrap
from triptych.config.media import MediaLimits
from triptych.config.nats import NatsServerConfig
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig, JoinConfig, PlaneConfig, WorkerConfig
from triptych.config.simulate import SimulateConfig
from triptych.config.supervise import SuperviseConfig
from triptych.config.transfer import TransferConfig
from triptych.config.verify import VerifyConfig
from triptych.engines.vllm.flags import VllmFlags

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARK = "<!-- flags below are written by scripts/flags.py -->\n"
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "Frontend: `triptych frontend`, and `frontend:` in a graph": FrontendConfig,
    "Routing: frontend": RouterConfig,
    "Worker: `triptych worker`, and each entry of `workers:` in a graph": WorkerConfig,
    "Worker on vLLM: beside vLLM's own flags, after `--`": VllmFlags,
    "Transfer: worker": TransferConfig,
    "Media limits: frontend and worker": MediaLimits,
    "Planes: frontend and worker": PlaneConfig,
    "Joining a deployment: frontend and worker": JoinConfig,
    "Supervisor: `triptych up` and `triptych demo`, and the top level of a graph": SuperviseConfig,
    "NATS server: `triptych nats`": NatsServerConfig,
    "Check: `triptych verify`": VerifyConfig,
    "Simulation: `triptych simulate TRACE`": SimulateConfig,
}


def table(model: type[msgspec.Struct]) -> str:
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    hints = get_type_hints(model, include_extras=True)
    for field in msgspec.structs.fields(model):
        _, text = unwrap(hints[field.name])
        rows.append(f"| `{flag(field.name)}` | {_default(field.default)} | {text} |")
    return "\n".join(rows)


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def page(current: str) -> str:
    head = current.partition(MARK)[0]
    tables = "\n\n".join(f"## {title}\n\n{table(model)}" for title, model in SECTIONS.items())
    return f"{head}{MARK}\n{tables}\n"


if __name__ == "__main__":
    raise SystemExit(write_or_check(PAGE, page))
