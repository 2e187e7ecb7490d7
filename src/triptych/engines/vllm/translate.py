"""Converts our types to vLLM's and back."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from triptych.contracts.answer import FinishReason, TokenLogprob
from triptych.contracts.request import Guided, Sampling

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; the value that OpenAI uses."""

GRAMMAR_BACKEND = "xgrammar"
"""The grammar library. vLLM's engine uses that of its first request for all requests."""

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class TriedSampling(SamplingParams):  # type: ignore[misc]
    """Holds parameters whose grammar was already tried beside the engine (``grammar/checker.py``).

    vLLM would convert the grammar once more on the event loop, without a time limit; here it does not.
    """

    def _validate_structured_outputs(self, *_: Any) -> None:
        if self.structured_outputs is not None:
            self.structured_outputs._backend = GRAMMAR_BACKEND


def sampling_params(sampling: Sampling, kv_transfer: dict[str, Any] | None = None) -> SamplingParams:
    """Returns vLLM's parameters, for deltas without text: the frontend makes the text.

    ``kv_transfer`` are vLLM's ``kv_transfer_params`` for a prompt whose cache is handed over or comes from elsewhere.
    """
    return TriedSampling(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        logit_bias=sampling.logit_bias,
        allowed_token_ids=list(sampling.allowed_token_ids) or None,
        structured_outputs=_structured(sampling.guided),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": kv_transfer} if kv_transfer is not None else None,
        skip_clone=True,
    )


def _structured(guided: Guided | None) -> StructuredOutputsParams | None:
    if guided is None:
        return None
    if guided.kind == "json_schema":
        return StructuredOutputsParams(json=guided.schema)
    return StructuredOutputsParams(json_object=True)


def finish_reason(reason: str | None) -> FinishReason | None:
    return None if reason is None else _FINISH.get(reason, "abort")


def logprobs_of(output: Any, wanted: int | None) -> list[TokenLogprob] | None:
    """Returns one entry for each token of a ``CompletionOutput``.

    An entry has the chosen token and the ``wanted`` most likely tokens.
    """
    if wanted is None or output.logprobs is None:
        return None
    return [
        _token_logprob(token, entry, wanted) for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]


def _token_logprob(token: int, entry: dict[int, Any], wanted: int) -> TokenLogprob:
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)[:wanted]
    top = [(other, max(value.logprob, LOWEST_LOGPROB)) for other, value in ranked]
    return TokenLogprob(max(entry[token].logprob, LOWEST_LOGPROB), top)
