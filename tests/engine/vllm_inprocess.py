"""vLLM in the test's own process, where one engine takes seconds; and requests and embeddings to give it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from support.reference import Reference, picture
from triptych.config.media import MediaLimits
from triptych.contracts.media import Medium, Picture
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.engines.vllm.environment import prepare
from triptych.engines.vllm.flags import VllmFlags
from triptych.media.naming import content_hash
from triptych.models.registry import family_of, load_checkpoint

prepare()  # before anything imports vLLM

KV = KvHandle(protocol="vllm/NixlConnector", request_id="elsewhere", params=b"")


class Engine:
    """vLLM's ``LLM`` with as much of ``AsyncLLM`` as prompts and encoding use. Close it before the next one."""

    def __init__(self, folder: Path, span: Span, flags: VllmFlags | None = None, **args: Any) -> None:
        from vllm import LLM

        from triptych.engines.vllm.ec import media_args
        from triptych.engines.vllm.options import processor_settings
        from triptych.engines.vllm.prompt import Prompts

        self.loop = asyncio.Runner()
        """What decodes media belongs to one event loop."""
        self.flags = flags or VllmFlags()
        self.checkpoint = load_checkpoint(str(folder))
        options = EngineOptions(model_path=str(folder), model_name="tiny", span=span, media=MediaLimits())
        self.prompts = Prompts(options, self.checkpoint, self.flags)
        common = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 1024}
        common["mm_processor_kwargs"] = processor_settings(self.checkpoint, None)
        common |= {"kv_cache_memory_bytes": 32 << 20} | args | media_args(self.flags, span, self.checkpoint)
        self.core = LLM(model=str(folder), **common).llm_engine
        self.vllm_config, self.model_config = self.core.vllm_config, self.core.model_config
        self.renderer = self.core.renderer
        self.calls = 0

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> Any:
        self.calls += 1
        for output in self.finish([(prompt, params)]):
            yield output

    def finish(self, work: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Run all to their ends, at once; their last outputs, in order."""
        names = [f"{id(work)}-{index}" for index in range(len(work))]
        for name, (prompt, params) in zip(names, work, strict=True):
            self.core.add_request(name, prompt, params)
        done: dict[str, Any] = {}
        for _ in range(2000):
            done |= {output.request_id: output for output in self.core.step() if output.finished}
            if not self.core.has_unfinished_requests():
                return [done[name] for name in names]
        raise AssertionError("the engine did not finish")

    def prompt(self, request: GenerateRequest, embeddings: Sequence[Any] = ()) -> Any:
        return self.loop.run(self.prompts.of(self, request, embeddings))

    def answer(self, request: GenerateRequest, embeddings: Sequence[Any] = ()) -> list[int]:
        """Greedy tokens."""
        (output,) = self.finish([(self.prompt(request, embeddings), greedy(request.sampling.max_tokens))])
        assert output.outputs[0].finish_reason == "length"
        return list(output.outputs[0].token_ids)

    def forget(self) -> None:
        """Empty every cache, so that the next request is computed from what it brings."""
        self.core.reset_prefix_cache()
        self.core.reset_encoder_cache()
        self.core.reset_mm_cache()
        self.forget_pixels()

    def forget_pixels(self) -> None:
        self.prompts._processed.clear()
        self.prompts.decoder.cache.clear()

    def close(self) -> None:
        from vllm.distributed.ec_transfer.ec_transfer_state import ensure_ec_transfer_shutdown

        self.loop.run(self.prompts.close())
        self.loop.close()
        ensure_ec_transfer_shutdown()  # one a process, left behind by an engine that shares it


def greedy(max_tokens: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False)


def medium(seed: int, width: int = 140, height: int = 112) -> Medium:
    buffer = io.BytesIO()
    picture(seed, width, height).save(buffer, "PNG")
    data = buffer.getvalue()
    name = content_hash("image", data)
    return Picture(content_hash=name, format="PNG", data=data, width=width, height=height)


def bare(*media: Medium) -> list[Medium]:
    return [msgspec.structs.replace(one, data=b"") for one in media]


def question(
    folder: Path,
    media: Sequence[Medium],
    *,
    generated_ids: Sequence[int] = (),
    tokens: int = 12,
    text: int = 4,
    **more: Any,
) -> GenerateRequest:
    """A prompt with ``media``, each followed by some text, of which ``tokens`` of the answer are wanted."""
    checkpoint = load_checkpoint(str(folder))
    ids = [1, 2]
    for index, one in enumerate(media):
        ids += [
            family_of(checkpoint).media[one.kind].placeholder(checkpoint),
            *(20 + (index + place) % 100 for place in range(text)),
        ]
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    return GenerateRequest(
        id="q",
        model="tiny",
        token_ids=[*ids, 9],
        sampling=sampling,
        media=list(media),
        generated_ids=list(generated_ids),
        **more,
    )


@dataclass
class Embedding:
    """A ``transfer.base.Buffer`` of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    data: memoryview

    @classmethod
    def of(cls, tensor: Any) -> Embedding:
        import torch

        raw = bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), memoryview(raw))

    def share(self) -> Embedding:
        return self

    def close(self) -> None:
        self.data[:] = b"\xff" * self.data.nbytes  # the memory is somebody else's now


def features(reference: Reference, seed: int, width: int = 140, height: int = 112) -> Any:
    """[tokens, hidden]: what transformers' model makes of that picture."""
    import torch

    model, processor = reference._parts
    inputs = processor.image_processor(images=[picture(seed, width, height)], return_tensors="pt")
    with torch.no_grad():
        made = model.get_image_features(**inputs)
    layers = [getattr(made, "pooler_output", made), *(getattr(made, "deepstack_features", None) or ())]
    return torch.cat([_rows(layer) for layer in layers], dim=-1)


def _rows(made: Any) -> Any:
    """[tokens, hidden] of what comes whole or in parts."""
    import torch

    parts = [made] if isinstance(made, torch.Tensor) else list(made)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
