"""Reads graph files: a model, a plane, a frontend and workers, as YAML with kebab-case keys.

``frontend`` takes every flag of ``triptych frontend``, and a worker every flag of ``triptych worker``, under the flag's
name. There are keys of a graph only for what no configuration model has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from triptych.config.choices import reason_of
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig, PlaneConfig, WorkerConfig
from triptych.config.supervise import SuperviseConfig
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Mode, Span, modes_of
from triptych.contracts.suggest import or_all
from triptych.deploy.yaml_file import read_yaml
from triptych.engines.registry import check_flags, require_engine

T = TypeVar("T", bound=msgspec.Struct)
Scalar = str | int | float


class FrontendNode(msgspec.Struct, frozen=True, kw_only=True):
    """The frontend of a graph."""

    config: FrontendConfig = FrontendConfig()
    media: MediaLimits = MediaLimits()
    router: RouterConfig = RouterConfig()
    replicas: int = 1


class FrontendPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the frontend that exist only in a graph: the number of processes that share its port."""

    replicas: Annotated[int, Meta(gt=0, le=64)] = 1


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of a worker that exist only in a graph: the number of processes, engine flags and environment."""

    replicas: Annotated[int, Meta(gt=0, le=256)] = 1
    args: tuple[Scalar, ...] = ()
    env: dict[str, Scalar] = {}


class WorkerNode(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a graph, with its replicas. ``config.name`` is never empty."""

    config: WorkerConfig
    media: MediaLimits = MediaLimits()
    transfer: TransferConfig = TransferConfig()
    placement: Placement = Placement()


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """A checked graph: its worker names are distinct, and its spans make up at least one mode."""

    workers: tuple[WorkerNode, ...]
    plane: PlaneConfig = PlaneConfig()
    frontend: FrontendNode = FrontendNode()
    supervise: SuperviseConfig = SuperviseConfig()

    @property
    def modes(self) -> tuple[Mode, ...]:
        return modes_of(worker.config.span for worker in self.workers)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the top level besides those of ``PlaneConfig`` and ``SuperviseConfig``."""

    model: str | None = None
    served_model_name: str | None = None
    frontend: dict[str, Any] | None = None
    workers: list[dict[str, Any]] = []


def load_graph(path: Path, *, model: str | None = None, served_model_name: str | None = None) -> Graph:
    """Returns the graph in the file ``path``, with ``model`` and its name overridden if given.

    Raises ConfigError with one line that names the file and the wrong key.
    """
    try:
        return parse_graph(read_yaml(path), model=model, served_model_name=served_model_name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_graph(document: object, *, model: str | None = None, served_model_name: str | None = None) -> Graph:
    """Returns the graph of a file that was read already. Errors name only the key."""
    head, plane, supervise = _read(document, "", _Head, PlaneConfig, SuperviseConfig)
    if not head.workers:
        raise ConfigError("workers: give at least one worker")
    defaults = {
        "model": head.model if model is None else model,
        "served-model-name": head.served_model_name if served_model_name is None else served_model_name,
    }
    workers = tuple(_read_worker(raw, f"workers[{index}]", defaults) for index, raw in enumerate(head.workers))
    config, media, router, placement = _read(
        head.frontend or {}, "frontend", FrontendConfig, MediaLimits, RouterConfig, FrontendPlacement
    )
    graph = Graph(
        workers=workers,
        plane=plane,
        frontend=FrontendNode(config=config, media=media, router=router, replicas=placement.replicas),
        supervise=supervise,
    )
    _check(graph)
    return graph


def kebab(name: str) -> str:
    return name.replace("_", "-")


def _read_worker(raw: dict[str, Any], where: str, defaults: dict[str, str | None]) -> WorkerNode:
    filled = {**{key: value for key, value in defaults.items() if value is not None}, **raw}
    if "model" not in filled:
        raise ConfigError("model: missing; name a checkpoint folder or `demo` here, or give --model")
    filled.setdefault("name", filled.get("span", Span.EPD.value))
    config, media, transfer, placement = _read(filled, where, WorkerConfig, MediaLimits, TransferConfig, Placement)
    for key in ("port", "instance_name"):
        if getattr(config, key) and placement.replicas > 1:
            raise ConfigError(f"{where}.{kebab(key)}: {placement.replicas} replicas cannot share one; leave it out")
    _check_engine(config.engine, tuple(map(str, placement.args)), where)
    return WorkerNode(config=config, media=media, transfer=transfer, placement=placement)


def _check_engine(engine: str, args: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for engines and flags that the worker would refuse after its start."""
    try:
        require_engine(engine)
    except ConfigError as error:
        raise ConfigError(f"{where}.engine: {error}") from error
    try:
        check_flags(engine, args)
    except ConfigError as error:
        raise ConfigError(f"{where}.args: {error}") from error


def _read(raw: object, where: str, *models: type[Any]) -> tuple[Any, ...]:
    """Returns one struct for each of ``models``, made from the keys of ``raw`` that are its fields."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or 'top level'}: must hold `key: value` lines")
    known = {kebab(name) for model in models for name in model.__struct_fields__}
    if unknown := [str(key) for key in raw if key not in known]:
        raise ConfigError(f"{_at(where, unknown[0])}: unknown key{or_all(unknown[0], sorted(known))}")
    return tuple(_convert(raw, where, model) for model in models)


def _convert(raw: dict[str, Any], where: str, model: type[T]) -> T:
    own = {name: raw[kebab(name)] for name in model.__struct_fields__ if kebab(name) in raw}
    try:
        return msgspec.convert(own, model)
    except msgspec.ValidationError as error:
        name = str(error).partition(" - at `$.")[2].rstrip("`")
        raise ConfigError(f"{_at(where, kebab(name))}: {reason_of(error, model, name, own.get(name))}") from error


def _at(where: str, key: str) -> str:
    return ".".join(part for part in (where, key) if part)


def _check(graph: Graph) -> None:
    if twice := _first_repeated(worker.config.name for worker in graph.workers):
        raise ConfigError(f"workers: two workers are named {twice!r}; give each a `name` of its own")
    if not graph.modes:
        spans = ", ".join(worker.config.span.value for worker in graph.workers)
        complete = "; ".join(" + ".join(span.value for span in mode.spans) for mode in Mode)
        raise ConfigError(f"workers: the spans {spans} make no complete mode; complete are: {complete}")


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
