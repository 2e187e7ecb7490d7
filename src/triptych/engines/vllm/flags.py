"""Parses the flags of the vLLM engine, Triptych's own and those of vLLM, without importing vLLM."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import did_you_mean, or_all
from triptych.engines.args import EngineFlags, parse_engine_args
from triptych.engines.vllm.source import choices, flag_names


class VllmFlags(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Triptych's own flags of a vLLM worker."""

    ec_connector_backend: Annotated[
        str, Meta(description="vLLM EC connector that carries embeddings from `e` to the workers that prefill.")
    ] = "ECExampleConnector"
    ec_storage_path: Annotated[
        str, Meta(description="Folder shared by the EC connector's producers and consumers; empty: no EC connector.")
    ] = ""
    ec_extra_config: Annotated[str, Meta(description="JSON object: more of the EC connector's configuration.")] = ""
    kv_events: Annotated[
        bool, Meta(description="Report the content of the KV cache to frontends, for routing (spans that prefill).")
    ] = True
    nixl_side_channel_host: Annotated[
        str, Meta(description="Address at which decode workers find this worker's NIXL agent.")
    ] = "127.0.0.1"
    nixl_side_channel_port: Annotated[
        int, Meta(ge=0, le=65535, description="First port of the NIXL side channel; 0 takes free ones.")
    ] = 0
    grammar_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for compiling the grammar of a `response_format` on trial.")
    ] = 4.0
    grammar_trials: Annotated[int, Meta(gt=0, description="Maximum number of grammars compiled on trial at once.")] = 2
    grammar_threads: Annotated[
        int, Meta(ge=0, description="Threads that compile one grammar on trial; 0: half of the cores, at most 8.")
    ] = 0
    grammar_memory_mib: Annotated[
        int, Meta(ge=64, description="Maximum memory for compiling one grammar on trial, in MiB.")
    ] = 1024
    grammar_max_step_s: Annotated[
        float,
        Meta(gt=0, description="Maximum processor time of a token under a grammar; slower grammars are refused."),
    ] = 0.1
    grammar_step_budget_s: Annotated[
        float,
        Meta(
            gt=0,
            description="Maximum processor time of a token under the grammars of all running requests together, which "
            "delays every stream. More requests wait, and then get 503.",
        ),
    ] = 0.25


def split_flags(words: tuple[str, ...]) -> tuple[VllmFlags, tuple[str, ...]]:
    """Separates Triptych's own flags from the words for vLLM.

    Raises ConfigError for a wrong value or an unknown flag.
    """
    known = {field.name for field in msgspec.structs.fields(VllmFlags)}
    own: list[str] = []
    rest: list[str] = []
    awaits_value = False
    for word in words:
        if awaits_value:
            own.append(word)
            awaits_value = False
        elif word.startswith("--") and word[2:].split("=")[0].replace("-", "_") in known:
            own.append(word)
            awaits_value = "=" not in word
        else:
            rest.append(word)
    _check_names(rest)
    _check_values(rest)
    return parse_engine_args(tuple(own), VllmFlags), tuple(rest)


def known_flags() -> list[str]:
    """Returns the flags of both, as far as they are known."""
    own = (f"--{field.name.replace('_', '-')}" for field in msgspec.structs.fields(VllmFlags))
    return sorted({*own, *(flag_names() or ())})


def _check_names(words: list[str]) -> None:
    """Checks names of flags. Raises ConfigError for a flag that vLLM does not have, and for the worker's own."""
    names = [_name(word) for word in words if word.startswith("--") and " " not in word]
    if "--model" in names:
        raise ConfigError("give the model to the worker (--model), not to the engine")
    if lora := next((name for name in names if "-lora" in name and not name.startswith("--no-")), None):
        raise ConfigError(f"{lora}: LoRA adapters are not served yet; merge the adapter into the checkpoint")
    if (known := flag_names()) is None:
        return
    for name in names:
        if name not in known and f"--{name.removeprefix('--no-')}" not in known:
            raise ConfigError(f"vLLM has no engine flag {name}{did_you_mean(name, known_flags())}")


def _check_values(words: list[str]) -> None:
    """Checks flags with a fixed set of values. Raises ConfigError for a value that is not in the set."""
    for index, word in enumerate(words):
        _, equals, value = word.partition("=")
        if not word.startswith("--") or "." in word.partition("=")[0]:
            continue
        if not equals and index + 1 < len(words):
            value = words[index + 1]
        known = choices().get(_name(word), [])
        if known and value not in (*known, "", "None") and not value.startswith("--"):
            raise ConfigError(f"vLLM's engine flag {_name(word)} {value}: unknown value{or_all(value, known)}")


def _name(word: str) -> str:
    """Returns the flag in ``word``, spelled with hyphens: without its value and any key within a JSON value."""
    return word.split("=")[0].split(".")[0].replace("_", "-")


FLAGS = EngineFlags(split_flags, known_flags)
