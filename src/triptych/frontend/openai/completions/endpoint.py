"""Makes the jobs of a request to ``POST /v1/completions``."""

from __future__ import annotations

from triptych.cache.memory_budget import Reservation
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.cache_salt import salt_of
from triptych.frontend.openai.completions.answers import CompletionAnswer
from triptych.frontend.openai.completions.prompts import echo_of, make_prompt, split_prompts
from triptych.frontend.openai.completions.schema import CompletionRequest, parse_completion
from triptych.frontend.openai.endpoint import Endpoint
from triptych.frontend.openai.generation import Job
from triptych.frontend.openai.jobs import make_jobs, spell_many
from triptych.frontend.openai.resources import Resources
from triptych.frontend.openai.sampling import sampling_of
from triptych.processor.processor import Processor


async def build(
    resources: Resources, request: CompletionRequest, processor: Processor, reservation: Reservation
) -> tuple[list[Job], CompletionAnswer]:
    """Implements ``Endpoint.build``."""
    if request.echo and request.logprobs is not None:
        raise BadRequest("echo cannot be combined with logprobs", param="echo")
    given, salt = split_prompts(request.prompt), salt_of(request.cache_salt)
    special = request.add_special_tokens is not False
    fields = [f"prompt[{index}]" for index in range(len(given))] if given is request.prompt else ["prompt"]
    prompts = [
        await make_prompt(prompt, field, processor, reservation, salt, special)
        for prompt, field in zip(given, fields, strict=True)
    ]
    longest = max(prompt.length for prompt in prompts)
    sampling = sampling_of(request, processor, resources.config, longest)
    await spell_many(sampling, processor)
    echoed = [await echo_of(prompt, processor) if request.echo else "" for prompt in given]
    echoes = [echo for echo in echoed for _ in range(request.n or 1)]
    answer = CompletionAnswer(processor.card.name, processor.tokenizer, null_usage=request.wants_usage, echoes=echoes)
    return make_jobs(answer.id, request, prompts, sampling, processor, salt), answer


ENDPOINT = Endpoint("/v1/completions", parse_completion, build)
