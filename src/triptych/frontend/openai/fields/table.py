"""Lists every request field that OpenAI's API, vLLM or SGLang know, and how it is treated.

This is decided here only. A field is **honoured** (it does what its definition says), **accepted** (it changes no
answer, and its note says why ignoring it is right) or **refused** (400 ``unsupported_parameter``) unless its value asks
for nothing. A field that is in no table is ignored and named in the header ``x-triptych-ignored``, or refused under
``--strict-fields``.

The schema classes of the endpoints hold the honoured fields; a test compares the two. docs/fields.md is written from
these tables. The tables of messages and content parts are in ``messages``.
"""

from __future__ import annotations

from triptych.frontend.openai.fields.field import Field, Fields, accepted, honoured, refused
from triptych.frontend.openai.fields.messages import MESSAGE, REFUSED_PARTS

_VLLM, _SGLANG, _BOTH = "vLLM", "SGLang", "vLLM, SGLang"
_ALL = "OpenAI, vLLM, SGLang"
_SCHEMA_INSTEAD = "use response_format with a json_schema"
_PLACED = "the frontend chooses workers and moves caches by itself"
_NO_TOOLS = "give tools to the chat template by chat_template_kwargs.tools; what the model calls is in its text"
_NO_EFFECT_WITHOUT = "has no effect by itself; what it belongs to is refused: {}"

_STREAM_OPTIONS = Fields(
    "StreamOptions",
    (
        honoured("include_usage", "a last event with the usage, and `usage: null` in the others", _ALL),
        refused("continuous_usage_stats", "the last event has the usage (include_usage)", _BOTH, False),
        refused("include_obfuscation", "events are not padded", "OpenAI", False),
    ),
)
_JSON_SCHEMA = Fields(
    "JsonSchema",
    (
        honoured("schema", "the JSON schema that the answer follows", _ALL),
        accepted("name", "names the schema for its reader; a grammar has no use for it", _ALL),
        accepted("description", "describes the schema for its reader; it is no part of the prompt", _ALL),
        accepted("strict", "every answer follows the schema, whatever this says", _ALL),
    ),
)
_RESPONSE_FORMAT = Fields(
    "ResponseFormat",
    (
        honoured("type", "`text`, `json_object` or `json_schema`", _ALL),
        honoured("json_schema", "the schema of `json_schema`", _ALL),
        refused("format", "structural tags are not supported: use a json_schema", _VLLM),
        refused("structures", "structural tags are not supported: use a json_schema", _BOTH),
        refused("triggers", "structural tags are not supported: use a json_schema", _BOTH),
        refused("at_least_one", "structural tags are not supported: use a json_schema", _SGLANG, False),
    ),
    {"json_schema": _JSON_SCHEMA},
)

_DRAWING: tuple[Field, ...] = (
    honoured("model", "the model that answers", _ALL),
    honoured("max_tokens", "most tokens of the answer", _ALL),
    honoured("temperature", "randomness of the draw; 0 takes the likeliest token", _ALL),
    honoured("top_p", "draws from the likeliest tokens of this probability together", _ALL),
    honoured("top_k", "draws from this many likeliest tokens; 0 and -1: from all", _BOTH),
    honoured("min_p", "draws from tokens of at least this share of the likeliest one's probability", _BOTH),
    honoured("presence_penalty", "against tokens that the answer has", _ALL),
    honoured("frequency_penalty", "against tokens, by how often the answer has them", _ALL),
    honoured("repetition_penalty", "against tokens that prompt or answer have; 1: none", _BOTH),
    honoured("stop", "texts that end the answer", _ALL),
    honoured("include_stop_str_in_output", "the stop text or token that ended the answer is a part of it", _VLLM),
    honoured("no_stop_trim", "the same", _SGLANG),
    honoured("stop_token_ids", "tokens that end the answer", _BOTH),
    honoured("allowed_token_ids", "no other tokens are drawn", _VLLM),
    honoured("seed", "makes the draw repeatable; choice i is drawn with seed + i", _ALL),
    honoured("n", "choices of each prompt", _ALL),
    honoured("logit_bias", "is added to tokens' logits", _ALL),
    honoured("ignore_eos", "goes on behind the end of the text", _BOTH),
    honoured("min_tokens", "fewest tokens of the answer", _BOTH),
    honoured("stream", "answers as server-sent events", _ALL),
    honoured("stream_options", "what a stream tells besides", _ALL),
    honoured("response_format", "the form that the answer follows", _ALL),
    honoured("session_id", "keeps a session's requests together, as the header x-session-id does", _BOTH),
    honoured("user", "keeps a user's requests together, where the router has sessions (docs/routing.md)", _ALL),
    honoured("cache_salt", "keeps the caches of tenants apart (docs/tenants.md)", _BOTH),
)

_BOOKKEEPING: tuple[Field, ...] = (
    accepted("metadata", "is kept with stored answers only, and nothing is stored", type=dict[str, str] | None),
    accepted("safety_identifier", "tells the operator of OpenAI's API who asks", type=str | None),
    accepted("prompt_cache_key", "a hint for caches; equal prefixes are found without it", type=str | None),
    refused("prompt_cache_options", "prefixes are cached by themselves", "OpenAI", {}, {"mode": "implicit"}),
    refused("prompt_cache_retention", "how long a cache is kept cannot be asked for", "OpenAI", "in_memory"),
    refused("store", "answers are not stored", "OpenAI", False),
    refused("service_tier", "there is one tier for all", "OpenAI", "auto", "default"),
    refused("moderation", "", "OpenAI"),
)

_REFUSED_DRAWING: tuple[Field, ...] = (
    refused("use_beam_search", "use n for several choices", _VLLM, False),
    refused("best_of", "use n, and choose among the choices", _ALL, same_as="n"),
    refused("length_penalty", "belongs to beam search", _VLLM, 1),
    refused("early_stopping", "belongs to beam search", _VLLM, False),
    refused("watermarking", "", _VLLM, False),
    refused("stop_regex", "use stop", _SGLANG, []),
    refused("skip_special_tokens", "special tokens are left out of the answer", _BOTH, True),
    accepted(
        "spaces_between_special_tokens",
        _NO_EFFECT_WITHOUT.format("skip_special_tokens"),
        _VLLM,
        type=bool | None,
    ),
    refused("truncate_prompt_tokens", "shorten the prompt before it is sent", _VLLM),
    accepted("truncation_side", _NO_EFFECT_WITHOUT.format("truncate_prompt_tokens"), _VLLM, type=str | None),
    refused("prompt_logprobs", "", _VLLM),
    refused("logprob_token_ids", "use logprobs", _VLLM, []),
    refused("bad_words", "use logit_bias with the words' tokens", _VLLM, []),
    refused("logits_processors", "use logit_bias", _VLLM, []),
    refused("custom_logit_processor", "use logit_bias", _SGLANG),
    refused("custom_params", "", _SGLANG, {}),
    refused("repetition_detection", "use repetition_penalty", _VLLM),
    refused("thinking_token_budget", "use max_tokens", _VLLM, -1),
    refused("ngram_corpus_id", "", _SGLANG),
    refused("priority", "requests are served in turns", _BOTH, 0),
)

_REFUSED_GRAMMARS: tuple[Field, ...] = (
    refused("structured_outputs", _SCHEMA_INSTEAD, _VLLM),
    refused("guided_json", _SCHEMA_INSTEAD, _VLLM),
    refused("guided_regex", _SCHEMA_INSTEAD + " and its pattern", _VLLM),
    refused("guided_choice", _SCHEMA_INSTEAD + " and its enum", _VLLM),
    refused("guided_grammar", _SCHEMA_INSTEAD, _VLLM),
    refused("guided_json_object", "use response_format with json_object", _VLLM, False),
    refused("guided_decoding_backend", "grammars are xgrammar's", _VLLM, "xgrammar", "auto"),
    refused("guided_whitespace_pattern", "", _VLLM),
    refused("structural_tag", _SCHEMA_INSTEAD, _BOTH),
    refused("json_schema", _SCHEMA_INSTEAD, _SGLANG),
    refused("regex", _SCHEMA_INSTEAD + " and its pattern", _SGLANG),
    refused("ebnf", _SCHEMA_INSTEAD, _SGLANG),
    refused("choice", _SCHEMA_INSTEAD + " and its enum", _VLLM),
)

_REFUSED_ANSWERS: tuple[Field, ...] = (
    refused("return_token_ids", "use logprobs, which name tokens by their bytes", _BOTH, False),
    refused("return_tokens_as_token_ids", "logprobs name tokens by their text and bytes", _VLLM, False),
    refused("return_hidden_states", "", _SGLANG, False),
    refused("return_routed_experts", "", _SGLANG, False),
    accepted("routed_experts_start_len", _NO_EFFECT_WITHOUT.format("return_routed_experts"), _SGLANG, type=int | None),
    accepted("routed_experts_prompt_start", "experts are not told", _VLLM, type=int | None),
    refused("return_cached_tokens_details", "usage.prompt_tokens_details has what is told", _SGLANG, False),
    refused("return_token_offsets", "", _VLLM, False),
    accepted("mm_payload", "is of render endpoints; vLLM's own answers ignore it, too", _VLLM, type=str | None),
    accepted("return_mm_kwargs", "is of render endpoints; vLLM's own answers ignore it, too", _VLLM, type=bool | None),
    refused("stream_interval", "each event holds what there is", _VLLM, 1),
    refused("custom_labels", "metrics have no labels of clients'", _SGLANG, {}),
)

_REFUSED_ROUTES: tuple[Field, ...] = (
    refused("request_id", "use the header x-request-id", _VLLM),
    refused("rid", "use the header x-request-id", _SGLANG),
    refused("session_params", "send the whole conversation; its prefix is cached", _SGLANG, {}),
    refused("extra_key", "", _SGLANG),
    refused("lora_path", "adapters are not served", _SGLANG),
    refused("kv_transfer_params", _PLACED, _VLLM),
    refused("ec_transfer_params", _PLACED, _VLLM),
    refused("bootstrap_host", _PLACED, _SGLANG),
    refused("bootstrap_port", _PLACED, _SGLANG),
    refused("bootstrap_room", _PLACED, _SGLANG),
    refused("routed_dp_rank", "use the header x-triptych-instance", _SGLANG),
    refused("disagg_prefill_dp_rank", _PLACED, _SGLANG),
    refused("data_parallel_rank", "use the header x-triptych-instance", _SGLANG),
    refused("vllm_xargs", "", _VLLM, {}),
    refused("images_config", "", _SGLANG, {}),
)

_REFUSED_EVERYWHERE = _REFUSED_DRAWING + _REFUSED_GRAMMARS + _REFUSED_ANSWERS + _REFUSED_ROUTES

_CHAT_OWN: tuple[Field, ...] = (
    honoured("messages", "the conversation", _ALL),
    honoured("max_completion_tokens", "most tokens of the answer; goes before max_tokens", _ALL),
    honoured("logprobs", "the log probability of each token", _ALL),
    honoured("top_logprobs", "so many of the likeliest tokens beside each", _ALL),
    honoured("chat_template_kwargs", "settings of the chat template (--chat-template-kwargs)", _BOTH),
    honoured("documents", "go to the chat template, if that reads them and --chat-template-kwargs allows them", _VLLM),
    honoured(
        "reasoning_effort", "goes to the chat template; where that reads enable_thinking, `none` turns it off", _ALL
    ),
    honoured("add_generation_prompt", "false: the prompt ends behind the last message", _VLLM),
    honoured("continue_final_message", "the answer goes on from the last message's text", _BOTH),
)

_CHAT_REFUSED: tuple[Field, ...] = (
    refused("tools", _NO_TOOLS, _ALL, []),
    refused("tool_choice", _NO_TOOLS, _ALL, "none", "auto"),
    accepted("parallel_tool_calls", _NO_EFFECT_WITHOUT.format("tools"), _ALL, type=bool | None),
    refused("functions", _NO_TOOLS, "OpenAI", []),
    refused("function_call", _NO_TOOLS, "OpenAI", "none", "auto"),
    refused("modalities", "answers are text", "OpenAI", ["text"], []),
    refused("audio", "answers are text", "OpenAI"),
    refused("prediction", "", "OpenAI"),
    refused("verbosity", "say it in the prompt", "OpenAI", "medium"),
    refused("web_search_options", "", "OpenAI"),
    refused("reasoning", "use reasoning_effort", _SGLANG, {}),
    refused("include_reasoning", "reasoning is not taken out of the answer", _VLLM, True),
    accepted("separate_reasoning", "no model's reasoning is told apart from its answer", _SGLANG, type=bool | None),
    accepted("stream_reasoning", "no model's reasoning is told apart from its answer", _SGLANG, type=bool | None),
    refused("echo", "the answer follows the last message; put them together yourself", _VLLM, False),
    refused("add_special_tokens", "the chat template sets them", _VLLM, False),
    refused("chat_template", "the checkpoint's own is used", _VLLM),
    refused("media_io_kwargs", "flags of the frontend say how media are read", _VLLM, {}),
    refused("mm_processor_kwargs", "the checkpoint's own settings are used", _VLLM, {}),
    refused("return_prompt_text", "", _VLLM, False),
    refused("return_prompt_token_ids", "", _SGLANG, False),
    refused("return_meta_info", "", _SGLANG, False),
    refused("task", "", _SGLANG),
    refused("max_dynamic_patch", "the checkpoint's own settings are used", _SGLANG),
    refused("min_dynamic_patch", "the checkpoint's own settings are used", _SGLANG),
    refused("use_audio_in_video", "a video's sound can be sent as audio_url", _SGLANG, False),
    refused("input_ids", "use /v1/completions", _SGLANG),
)

_COMPLETION_OWN: tuple[Field, ...] = (
    honoured("prompt", "a text, token ids, or a list of either", _ALL),
    honoured("logprobs", "the log probability of each token, and so many of the likeliest", _ALL),
    honoured("echo", "the prompt stands before the answer", _ALL),
    honoured("add_special_tokens", "false: no tokens of the tokenizer's own around a text", _VLLM),
)

_COMPLETION_REFUSED: tuple[Field, ...] = (
    refused("suffix", "", _ALL, ""),
    refused("prompt_embeds", "", _VLLM, []),
    refused("multi_modal_data", "use /v1/chat/completions with content parts", _VLLM, {}),
    refused("mm_processor_kwargs", "the checkpoint's own settings are used", _VLLM, {}),
)

REFUSED_FORMATS = {
    "structural_tag": "use a json_schema",
    "regex": "use a json_schema with a pattern",
    "grammar": "use a json_schema",
}
"""The types of ``response_format`` that only other servers know, each with what to use instead."""
REFUSED_TYPES = {**REFUSED_PARTS, **REFUSED_FORMATS}

_SHARED = {"stream_options": _STREAM_OPTIONS, "response_format": _RESPONSE_FORMAT}
CHAT = Fields(
    "ChatRequest",
    _CHAT_OWN + _DRAWING + _BOOKKEEPING + _CHAT_REFUSED + _REFUSED_EVERYWHERE,
    {"messages": MESSAGE, **_SHARED},
)
COMPLETION = Fields(
    "CompletionRequest",
    _COMPLETION_OWN + _DRAWING + _BOOKKEEPING + _COMPLETION_REFUSED + _REFUSED_EVERYWHERE,
    _SHARED,
)
