"""Chooses vLLM's encoder cache (EC) connector for an engine, by its span and flags."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.engines.vllm.ec_store import DEFAULT_MAX_BYTES, EcStore, usable_folder
from triptych.engines.vllm.flags import VllmFlags
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of

FILES = "ECExampleConnector"
"""vLLM's name of its example connector, which keeps embeddings in files. It selects our own connector here."""
KNOWN = f"{FILES}, or one of your own as module.path:ClassName, which must find embeddings by their names"

_OURS = {"ec_connector": "EcFileConnector", "ec_connector_module_path": "triptych.engines.vllm.ec_connector"}
_BY_REQUEST = ("ECCPUConnector", "ECMooncakeConnector")
"""Connectors of vLLM whose consumer must learn from each request where its embeddings are. They are not supported."""


class FilesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The allowed settings of ``--ec-extra-config`` for ``ECExampleConnector``."""

    max_bytes: int = DEFAULT_MAX_BYTES


def ec_transfer_config(flags: VllmFlags, span: Span, checkpoint: Checkpoint) -> Any:
    """Returns vLLM's ``ECTransferConfig``; None for an engine that needs none.

    ``e`` produces embeddings; spans with ``p`` consume them if a connector is set up. ``d`` reads no embeddings, but
    takes media without any, whose KV cache comes from elsewhere. It gets our connector without a store, which fails
    a request that does need embeddings, where vLLM's engine would end. Raises ConfigError.
    """
    from vllm.config import ECTransferConfig

    extra = _checked(flags, span)
    if not _is_on(flags):
        return ECTransferConfig(**_OURS, ec_role="ec_consumer") if span is Span.D else None
    role = "ec_producer" if span is Span.E else "ec_consumer"
    if flags.ec_connector_backend != FILES:
        module, _, name = flags.ec_connector_backend.rpartition(":")
        own = {"shared_storage_path": flags.ec_storage_path} if flags.ec_storage_path else {}
        return ECTransferConfig(
            ec_connector=name,
            ec_connector_module_path=module,
            ec_role=role,
            ec_connector_extra_config={**own, **extra},
        )
    store = store_of(flags, span, checkpoint)
    assert store is not None
    ours = {"shared_storage_path": str(store.folder), "max_bytes": store.max_bytes, **_width(checkpoint)}
    return ECTransferConfig(**_OURS, ec_role=role, ec_connector_extra_config=ours)


def store_of(flags: VllmFlags, span: Span, checkpoint: Checkpoint) -> EcStore | None:
    """Returns the store of files that this engine shares with others; None if it shares none. Raises ConfigError."""
    extra = _checked(flags, span)
    if not flags.ec_storage_path or flags.ec_connector_backend != FILES:
        return None
    folder = usable_folder(flags.ec_storage_path, writes=span is Span.E) / fingerprint(checkpoint)
    if span is Span.E:
        folder.mkdir(exist_ok=True)
    return EcStore(folder, max_bytes=_files_config(extra).max_bytes)


def media_args(flags: VllmFlags, span: Span, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns engine arguments that the transfer of embeddings needs, whatever the flags say. Raises ConfigError.

    vLLM's multimodal processor cache stays on only where pixels are the usual input and no medium comes without
    values (see ``prompt.Prompts``); elsewhere it would keep up to 4 GiB of embeddings in the engine's process.
    """
    if not family_of(checkpoint).modalities:
        if span is Span.E:
            raise ConfigError("this model takes no media: there is nothing for span e to encode")
        return {}
    args: dict[str, Any] = {}
    config = ec_transfer_config(flags, span, checkpoint)
    if config is not None:
        args["ec_transfer_config"] = config
    if config is not None or not span.covers("e"):
        args["mm_processor_cache_gb"] = 0
    return args | (_encoder_only_args() if span is Span.E else {})


def _encoder_only_args() -> dict[str, Any]:
    """Returns the arguments of an encoder.

    vLLM by itself makes an EC producer load the encoder's weights alone, without a KV cache.
    """
    return {"enable_prefix_caching": False}


def fingerprint(checkpoint: Checkpoint) -> str:
    """Names a model, wherever its files are, so that embeddings of several models can be kept under one path."""
    processors = [checkpoint.preprocessor, checkpoint.feature_extractor, checkpoint.video]
    digest = hashlib.sha256(msgspec.json.encode([checkpoint.config, *processors], order="sorted"))
    for file in sorted(Path(checkpoint.path).glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size};".encode())
    return digest.hexdigest()[:16]


def believes(flags: VllmFlags, span: Span) -> bool:
    """Tells whether a medium without values is accepted unchecked, because only a foreign connector can look it up."""
    return flags.ec_connector_backend != FILES and span.covers("p")


def _is_on(flags: VllmFlags) -> bool:
    return bool(flags.ec_storage_path) or flags.ec_connector_backend != FILES


def _checked(flags: VllmFlags, span: Span) -> dict[str, Any]:
    """Checks the flags, and returns the connector's extra configuration."""
    backend = flags.ec_connector_backend
    if backend in _BY_REQUEST:
        raise ConfigError(f"--ec-connector-backend {backend}: Triptych has no way to tell its consumers their peers")
    if backend != FILES and not all(backend.rpartition(":")):
        raise ConfigError(f"unknown --ec-connector-backend {backend!r}; known: {KNOWN}")
    if span is Span.D and _is_on(flags):
        raise ConfigError("span d reads no embeddings: leave out --ec-storage-path and --ec-connector-backend")
    if span is Span.E and not _is_on(flags):
        raise ConfigError("span e on vLLM hands embeddings over in files: give --ec-storage-path, or --engine encoder")
    if flags.ec_extra_config and not _is_on(flags):
        raise ConfigError("--ec-extra-config is of no use without --ec-storage-path")
    extra = _json_object(flags.ec_extra_config)
    if backend == FILES:
        _files_config(extra)
    return extra


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--ec-extra-config is not a JSON object: {error}") from None


def _files_config(extra: dict[str, Any]) -> FilesConfig:
    try:
        config = msgspec.convert(extra, FilesConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--ec-extra-config for {FILES}: {error}; known: max_bytes") from None
    if config.max_bytes < 1 << 20:
        raise ConfigError("--ec-extra-config: max_bytes must be at least 1048576 (1 MiB)")
    return config


def _width(checkpoint: Checkpoint) -> dict[str, int]:
    width = family_of(checkpoint).embedding_width
    return {} if width is None else {"width": width(checkpoint)}
