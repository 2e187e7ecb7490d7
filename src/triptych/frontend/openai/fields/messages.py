"""Lists the fields of messages and of their content parts, and how each is treated (see ``table``)."""

from __future__ import annotations

from triptych.frontend.openai.fields.field import Field, Fields, Tagged, accepted, honoured, refused

_VLLM, _SGLANG, _BOTH = "vLLM", "SGLang", "vLLM, SGLang"
_ALL = "OpenAI, vLLM, SGLang"
_OWN_SETTINGS = "the checkpoint's own settings are used"

_CACHED = refused("prompt_cache_breakpoint", "prefixes are cached by themselves", "OpenAI")
_UUID = refused("uuid", "media are named by their content, and a repeated one costs nothing", _VLLM)
_PATCHES = (
    refused("max_dynamic_patch", _OWN_SETTINGS, _SGLANG),
    refused("min_dynamic_patch", _OWN_SETTINGS, _SGLANG),
)
_TYPE = honoured("type", "the kind of the part", _ALL)
_URL = honoured("url", "an `http:`, `https:`, `data:` or `file:` URL", _ALL)

DETAIL = honoured(
    "detail",
    "pictures are seen as large as the model's processor makes them; send a smaller one for less",
    _ALL,
    only=("auto", "high", "original"),
)

_IMAGE_URL = Fields(
    "ImageUrl", (_URL, DETAIL, *_PATCHES, refused("content_hash", "media are named by their content", _SGLANG))
)
_MEDIA_URL = Fields("MediaUrl", (_URL, *_PATCHES))
_AUDIO_DATA = Fields(
    "AudioData",
    (
        honoured("data", "base64, or a `data:` URL", "OpenAI, vLLM"),
        accepted("format", "the first bytes of the data say what it is", "OpenAI, vLLM"),
    ),
)


def _medium(schema: str, name: str, known_to: str, inside: Fields, *more: Field) -> Fields:
    own = honoured(name, "the medium: an object with its URL, or the URL alone", known_to)
    return Fields(schema, (_TYPE, own, _UUID, _CACHED, *more), {name: inside})


def _embedding(schema: str, name: str) -> Fields:
    own = honoured(name, "the embedding: an object with its URL, or the URL alone (--enable-mm-embeds)", "Triptych")
    return Fields(schema, (_TYPE, own, _UUID), {name: _MEDIA_URL})


PARTS = Tagged(
    {
        "text": Fields("TextPart", (_TYPE, honoured("text", "the text", _ALL), _CACHED)),
        "refusal": Fields("RefusalPart", (_TYPE, honoured("refusal", "what the assistant said, as text", "OpenAI"))),
        "image_url": _medium(
            "ImagePart",
            "image_url",
            _ALL,
            _IMAGE_URL,
            refused("modalities", "send each picture as a part, and a video as video_url", _SGLANG, "image"),
        ),
        "video_url": _medium("VideoPart", "video_url", _BOTH, _MEDIA_URL),
        "audio_url": _medium("AudioPart", "audio_url", _BOTH, _MEDIA_URL),
        "input_audio": _medium("InputAudioPart", "input_audio", "OpenAI, vLLM", _AUDIO_DATA),
        "image_embeds": _embedding("ImageEmbedsPart", "image_embeds"),
        "video_embeds": _embedding("VideoEmbedsPart", "video_embeds"),
        "audio_embeds": _embedding("AudioEmbedsPart", "audio_embeds"),
    }
)

REFUSED_PARTS = {
    "file": "send pictures, videos and sounds as parts of their own, and the text of other files as text",
    "image_pil": "send the picture as image_url",
    "prompt_embeds": "send the text",
    "thinking": "send it as the message's reasoning",
    "reasoning": "send it as the message's reasoning",
    "tool_reference": "give tools to the chat template by chat_template_kwargs.tools",
}
"""The types of content parts that only other servers know, each with what to use instead."""

MESSAGE = Fields(
    "ChatMessage",
    (
        honoured("role", "who speaks: see docs/api.md", _ALL),
        honoured("content", "a text, or a list of content parts", _ALL),
        honoured("name", "goes to the chat template", _ALL),
        honoured("tool_calls", "go to the chat template, their arguments as objects", _ALL),
        honoured("tool_call_id", "goes to the chat template", _ALL),
        refused("function_call", "use tool_calls", "OpenAI"),
        honoured("refusal", "what the assistant said, behind its content", "OpenAI"),
        refused("audio", "send a sound as input_audio", "OpenAI"),
        refused("annotations", "leave them out: they are of an answer", "OpenAI", []),
        honoured(
            "reasoning",
            "goes to the chat template, as `reasoning` and `reasoning_content`, if that reads either",
            _VLLM,
        ),
        honoured("reasoning_content", "the same, by its older name", _BOTH),
        refused("tools", "give tools by chat_template_kwargs.tools", _BOTH, []),
        refused("task", "", _VLLM),
    ),
    {"content": PARTS},
)
