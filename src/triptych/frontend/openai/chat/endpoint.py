"""Makes the jobs of a request to ``POST /v1/chat/completions``."""

from __future__ import annotations

from functools import partial

from triptych.cache.memory_budget import Reservation
from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.cache_salt import salt_of
from triptych.frontend.openai.chat.answers import ChatAnswer
from triptych.frontend.openai.chat.messages import split_media
from triptych.frontend.openai.chat.schema import ChatRequest, parse_chat
from triptych.frontend.openai.chat.template_settings import template_settings
from triptych.frontend.openai.endpoint import Endpoint
from triptych.frontend.openai.generation import Job
from triptych.frontend.openai.jobs import make_jobs, spell_many
from triptych.frontend.openai.resources import Resources
from triptych.frontend.openai.sampling import sampling_of
from triptych.frontend.openai.weight import BYTES_A_TOKEN
from triptych.processor.processor import Processor
from triptych.processor.template import Ending


async def build(
    resources: Resources, request: ChatRequest, processor: Processor, reservation: Reservation
) -> tuple[list[Job], ChatAnswer]:
    """Implements ``Endpoint.build``."""
    if not request.messages:
        raise BadRequest("messages: at least one message is required", param="messages")
    messages, media = split_media(request.messages)
    resources.check_media(media)
    settings = template_settings(request, processor, resources.config.chat_template_kwargs)
    salt = salt_of(request.cache_salt)
    load = partial(resources.media.load, holder=reservation)
    prompt = await processor.chat(messages, media, settings, load, salt, _ending(request))
    reservation.add(BYTES_A_TOKEN * prompt.length)
    sampling = sampling_of(request, processor, resources.config, prompt.length)
    await spell_many(sampling, processor)
    answer = ChatAnswer(processor.card.name, processor.tokenizer, null_usage=request.wants_usage)
    return make_jobs(answer.id, request, [prompt], sampling, processor, salt), answer


def _ending(request: ChatRequest) -> Ending:
    """Returns how the rendered prompt ends. Raises BadRequest where the fields contradict."""
    if not request.continue_final_message:
        return "message" if request.add_generation_prompt is False else "answer"
    if request.add_generation_prompt:
        field = "continue_final_message"
        raise BadRequest(f"{field} and add_generation_prompt exclude each other: give one of them", param=field)
    if request.messages[-1].content in (None, []):
        raise BadRequest(
            "continue_final_message: the last message has no text to go on from", param="continue_final_message"
        )
    return "open"


ENDPOINT = Endpoint("/v1/chat/completions", parse_chat, build)
