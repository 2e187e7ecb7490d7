"""Makes jobs of prompts: one for each choice, with the request that goes to the workers."""

from __future__ import annotations

import asyncio
import secrets

import msgspec

from triptych.contracts.request import GenerateRequest, Sampling
from triptych.frontend.openai.choice import Choice
from triptych.frontend.openai.generation import Job
from triptych.frontend.openai.request import GenerationFields
from triptych.frontend.openai.sampling import stop_strings
from triptych.processor.processor import Processor
from triptych.processor.prompt import Prompt

MANY_ALTERNATIVES = 256
"""The number of alternatives for each token above which the vocabulary is spelled beforehand. So many take 0.5 ms."""


def make_jobs(
    answer_id: str,
    request: GenerationFields,
    prompts: list[Prompt],
    sampling: Sampling,
    processor: Processor,
    salt: str,
) -> list[Job]:
    """Makes ``n`` choices of each prompt. A given seed counts up over them, so that they differ."""
    stops, keeps = stop_strings(request), bool(request.include_stop_str_in_output or request.no_stop_trim)
    jobs: list[Job] = []
    for prompt in prompts:
        for copy in range(request.n or 1):
            generate = GenerateRequest(
                id=f"{answer_id}-{len(jobs)}-{secrets.token_hex(2)}",
                model=processor.card.name,
                token_ids=prompt.token_ids,
                sampling=_with_seed(sampling, copy),
                media=prompt.media,
                prompt_tokens=prompt.length,
                salt=salt,
            )
            choice = Choice(processor.tokenizer, prompt.token_ids, stops, sampling.min_tokens, keeps)
            jobs.append(Job(generate, prompt, choice))
    return jobs


def _with_seed(sampling: Sampling, copy: int) -> Sampling:
    if sampling.seed is None or copy == 0:
        return sampling
    seed = sampling.seed + copy
    return msgspec.structs.replace(sampling, seed=seed if seed < 1 << 63 else seed - (1 << 64))


async def spell_many(sampling: Sampling, processor: Processor) -> None:
    """Spells the whole vocabulary in a thread, if many alternatives of each token are wanted."""
    if (sampling.logprobs or 0) > MANY_ALTERNATIVES:
        await asyncio.to_thread(processor.tokenizer.spelling.fill)
