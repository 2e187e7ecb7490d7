"""Makes the prompts of a plain completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.cache.memory_budget import Reservation
from triptych.contracts.errors import BadRequest
from triptych.contracts.tokens import TokenIds
from triptych.frontend.openai.weight import BYTES_A_TOKEN
from triptych.processor.processor import Processor
from triptych.processor.prompt import Prompt


def split_prompts(prompt: str | TokenIds | list[Any]) -> list[str | Sequence[int]]:
    """Returns one or several prompts, each as text or as token ids. Raises BadRequest for a mixture."""
    if isinstance(prompt, str | TokenIds):
        return [prompt]
    if prompt and all(isinstance(item, int) for item in prompt):
        return [prompt]
    if not prompt or len({isinstance(item, str) for item in prompt}) > 1 or int in map(type, prompt):
        raise BadRequest(
            "prompt must be a text, a list of texts, a list of token ids, or a list of such lists",
            param="prompt",
        )
    return prompt


async def make_prompt(
    given: str | Sequence[int], field: str, processor: Processor, holder: Reservation, salt: str, special: bool
) -> Prompt:
    """Tokenises one prompt, which stands at ``field`` of the request. Raises BadRequest with that place."""
    if isinstance(given, str):
        prompt = await processor.completion(given, salt, field, add_special_tokens=special)
    else:
        prompt = await processor.tokens(given, salt, field)
    holder.add(BYTES_A_TOKEN * prompt.length)
    return prompt


async def echo_of(prompt: str | Sequence[int], processor: Processor) -> str:
    """Returns a prompt as text. A given text stays as it is: decoding its tokens would lose the special ones."""
    return prompt if isinstance(prompt, str) else await processor.text_of(prompt)
