"""Collects the settings that a trial needs to compile a grammar as vLLM's engine will."""

from __future__ import annotations

import os
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from triptych.contracts.errors import ConfigError
from triptych.engines.vllm.flags import VllmFlags
from triptych.engines.vllm.grammar.wire import Setup

MAX_THREADS = 8
"""Maximum number of threads that compile a grammar; the same as in vLLM."""


def check_backend(args: Any) -> None:
    """Checks the grammar library. Raises ConfigError for one whose grammars cannot be tried beside the engine."""
    config = args.structured_outputs_config
    backend = config.get("backend", "auto") if isinstance(config, dict) else config.backend
    if backend not in ("auto", "xgrammar"):
        raise ConfigError(
            f"--structured-outputs-config.backend {backend}: grammars are compiled on trial beside the engine, "
            "which is done with xgrammar (auto) only"
        )


def setup_of(vllm_config: Any, flags: VllmFlags) -> Setup:
    """Collects the setup by vLLM's own code, which knows the exceptions among tokenizers.

    Takes up to a second, once.
    """
    model = vllm_config.model_config
    backend = XgrammarBackend(
        vllm_config, tokenizer=cached_tokenizer_from_config(model_config=model), vocab_size=model.get_vocab_size()
    )
    smallest = backend.compiler.compile_grammar('root ::= "a"')
    without_space = backend.disable_any_whitespace
    return Setup(
        tokenizer=smallest.tokenizer_info.serialize_json(),
        any_whitespace=not without_space,
        separators=(",", ":") if without_space else None,
        timeout_s=flags.grammar_timeout_s,
        max_step_s=flags.grammar_max_step_s,
        memory_bytes=flags.grammar_memory_mib << 20,
        threads=flags.grammar_threads or max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2)),
    )
