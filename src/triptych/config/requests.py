"""Configures the limits on one request, which are counted before anything is made of it.

A struct extends one other at most, so these stand upon the limits of schemas, those upon the HTTP server's settings,
and the frontend's upon all.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from triptych.config.schema_limits import SchemaLimits


class RequestLimits(SchemaLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flags of the frontend. A request over one of them is refused with 400 or 413, the field and the limit."""

    strict_fields: Annotated[
        bool,
        Meta(
            description="Refuse requests with an unknown field. Otherwise such a field is ignored, and named in the "
            "header `x-triptych-ignored`."
        ),
    ] = False
    max_json_values: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum number of values (entries of lists and objects) in a request body; long lists of "
            "token ids do not count.",
        ),
    ] = 65_536
    max_text_bytes: Annotated[
        int, Meta(gt=0, description="Maximum bytes of one text in a request body; media as `data:` URLs do not count.")
    ] = 16 << 20
    max_messages: Annotated[int, Meta(gt=0, description="Maximum number of messages of a request.")] = 4096
    max_content_parts: Annotated[
        int,
        Meta(gt=0, description="Maximum number of content parts and tool calls of a request, over all its messages."),
    ] = 8192
    max_template_values: Annotated[
        int, Meta(gt=0, description="Maximum number of values in `chat_template_kwargs`, at every depth together.")
    ] = 16_384
    max_template_characters: Annotated[
        int, Meta(gt=0, description="Maximum characters of the texts in `chat_template_kwargs`.")
    ] = 1 << 20
    max_texts_waiting: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum number of long texts that wait to be decoded, rendered and tokenised; more get 429.",
        ),
    ] = 256
