"""vLLM's offloading to host memory for its CPU build, by plain copies; vLLM's own wants a GPU to copy from.

Named in an engine's ``kv_connector_extra_config``; all else, what is offloaded when and what is said of it, is vLLM's.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class PlainWorker(OffloadingWorker):  # type: ignore[misc]
    """A chunk is one block."""

    def __init__(self, kv_caches: Any, chunks: int) -> None:
        self._device = [one.tensor for one in kv_caches.tensors]
        self._host = [torch.empty(chunks, *one.shape[1:], dtype=one.dtype) for one in self._device]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._device, src_spec, self._host, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._host, src_spec, self._device, dst_spec)

    def _copy(self, job_id: int, sources: list[Any], source: Any, targets: list[Any], target: Any) -> bool:
        for here, there in zip(sources, targets, strict=True):
            there[torch.from_numpy(target.block_ids).long()] = here[torch.from_numpy(source.block_ids).long()]
        self._done.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        pass


class PlainOffloading(CPUOffloadingSpec):  # type: ignore[misc]
    def get_worker(self, kv_caches: Any) -> PlainWorker:
        assert self.blocks_per_chunk == 1
        if self._worker is None:
            self._worker = PlainWorker(kv_caches, self.num_chunks)
        return self._worker
