"""Implements our EC connector, which keeps embeddings in files, and fails requests where vLLM's engine would end.

vLLM creates one connector in its scheduler and one in each of its workers (``ECConnectorRole``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
from vllm.platforms import current_platform

from triptych.engines.vllm.ec_store import DEFAULT_MAX_BYTES, TENSOR, EcStore
from triptych.engines.vllm.mm_items import has_values

log = logging.getLogger("triptych.vllm.ec")


@dataclass
class Step(ECConnectorMetadata):  # type: ignore[misc]
    """The scheduler's orders to the workers for one step."""

    load: dict[str, torch.Tensor] = field(default_factory=dict)
    """Content hash -> embedding, [tokens, hidden]."""
    save: set[str] = field(default_factory=set)
    """Content hashes that must be in the store after the step, if they are in the encoder cache before it."""


class EcFileConnector(ECConnectorBase):  # type: ignore[misc]
    """Replaces vLLM's file connector, and has a store that keeps, checks and evicts embeddings.

    vLLM itself would notice a missing embedding only when the model needs it, which ends the engine. So the connector
    in the scheduler reads every embedding *before* the request is scheduled, and hands the values to the workers with
    the step: a file that is evicted, incomplete or of the wrong shape fails one request (its ``finish_reason`` is
    ``error``), never the engine. Without a store, on an engine that decodes, it fails requests whose media have no
    values and whose KV cache is gone (preempted, or lost).
    """

    def __init__(self, vllm_config: Any, role: ECConnectorRole) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        extra = vllm_config.ec_transfer_config.get_from_extra_config
        folder = extra("shared_storage_path", "")
        self._store = EcStore(Path(folder), max_bytes=extra("max_bytes", DEFAULT_MAX_BYTES)) if folder else None
        self._width: int | None = extra("width", None)
        self._dtype = vllm_config.model_config.dtype
        self._read: dict[str, dict[str, torch.Tensor]] = {}  # request -> what it will need
        self._step = Step()
        self._lost: set[str] = set()

    # The scheduler calls these methods, in this order.

    def ensure_cache_available(self, request: Any, num_computed_tokens: int) -> bool:
        """Tells whether the request may be scheduled: everything it still needs is there."""
        for feature in request.mm_features:
            if self.is_producer:
                self._step.save.add(feature.identifier)
                continue
            place = feature.mm_position
            if place.offset + place.length <= num_computed_tokens or _is_embedded(feature):
                continue
            if not self._reads(request.request_id, feature) and not (feature.data and has_values(feature.data)):
                self._lost.add(request.request_id)
                return False
        return True

    def has_cache_item(self, identifier: str) -> bool:
        if self.is_producer:
            return self._store is not None and self._store.holds(identifier)
        return any(identifier in read for read in self._read.values())

    def update_state_after_alloc(self, request: Any, index: int) -> None:
        identifier = request.mm_features[index].identifier
        for read in self._read.values():
            if identifier in read:
                self._step.load[identifier] = read[identifier]

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        step, self._step = self._step, Step()
        for read in self._read.values():
            for identifier in step.load:
                read.pop(identifier, None)
        return step

    def take_unavailable_requests(self) -> set[str]:
        lost, self._lost = self._lost, set()
        return lost

    def request_finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        self._read.pop(request.request_id, None)
        if not self.is_producer or not request.mm_features:
            return False, None
        return False, {feature.identifier: {} for feature in request.mm_features}

    # A worker calls these methods.

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        for identifier, values in self._get_connector_metadata().load.items():
            if identifier not in encoder_cache:
                encoder_cache[identifier] = values.to(device=_device(), dtype=self._dtype)

    def start_save_caches(self, **kwargs: Any) -> None:
        """Saves again embeddings that were evicted from the store and are still encoded: vLLM encodes and saves only
        new ones.
        """
        cache = kwargs["encoder_cache"]
        for identifier in self._get_connector_metadata().save:
            if identifier in cache:
                self.save_caches(cache, identifier)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        if not self.is_producer or self._store is None or self._store.holds(mm_hash):
            return
        values = encoder_cache[mm_hash].detach().cpu().contiguous()  # [tokens, hidden]
        try:
            self._store.save(mm_hash, partial(save_file, {TENSOR: values}))
        except (OSError, ValueError, SafetensorError) as error:
            # The caller that asked for the embedding looks into the store, and reports that it is missing.
            log.error("an embedding could not be saved in %s: %s", self._store.folder, error)

    # Both call these methods.

    def _reads(self, request_id: str, feature: Any) -> bool:
        """Reads the feature's embedding for that request, unless it is read already. Returns whether it is there."""
        if self._store is None:
            return False
        read = self._read.setdefault(request_id, {})
        if feature.identifier not in read:
            values = self._load(feature.identifier, feature.mm_position.get_num_embeds())
            if values is None:
                return False
            read[feature.identifier] = values
        return True

    def _load(self, content_hash: str, tokens: int) -> torch.Tensor | None:
        """Returns [tokens, hidden] in memory of its own: the file may be deleted at any time."""
        assert self._store is not None
        shape = self._store.shape(content_hash)
        if shape is None or len(shape) != 2 or shape[0] != tokens or self._width not in (None, shape[1]):
            return None
        try:
            return load_file(self._store.path(content_hash))[TENSOR].clone()
        except (OSError, SafetensorError):
            return None


def _is_embedded(feature: Any) -> bool:
    return feature.data is not None and any(key.endswith("_embeds") for key in feature.data)


def _device() -> str:
    kind = str(current_platform.device_type)
    return f"{kind}:{current_platform.current_device()}" if current_platform.is_cuda_alike() else kind
