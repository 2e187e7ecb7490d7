"""Compiles one grammar as vLLM does, and generates under it for a while. Runs in a process that may be killed."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import numpy as np
import xgrammar

from triptych.engines.vllm.grammar.wire import Setup, Verdict

WALKS = 2
WALK_TOKENS = 64
"""Number of tokens of each walk, enough to show a cost that grows with the text."""
WALKS_S = 1.0
"""Processor time for all walks."""
_PLACE = re.compile(r"^\[[\d:]+\] \S+?:\d+: ")
_KNOWN_FAULTS = {
    "per_rule_fsm_hashes": "a pattern repeats something more than 128 times, which xgrammar cannot build; "
    "use maxLength instead of a pattern, or fewer repetitions",
    "bad_alloc": "it takes too much memory to compile; use fewer alternatives, properties and repetitions",
}


def try_grammar(schema: str, setup: Setup, tokenizer: Any) -> Verdict:
    """Tries a grammar. Never raises for a faulty ``schema``."""
    begun = time.perf_counter()
    # The cache changes how grammars are built, and fails for some: vLLM's engine has it on.
    compiler = xgrammar.GrammarCompiler(tokenizer, max_threads=setup.threads, cache_enabled=True)
    try:
        compiled = compiler.compile_json_schema(
            schema, any_whitespace=setup.any_whitespace, separators=setup.separators
        )
        compile_s = time.perf_counter() - begun
        step_s = _costliest_step(compiled, tokenizer.vocab_size, setup.max_step_s)
    except MemoryError:
        return Verdict(outcome="too_costly", reason=_KNOWN_FAULTS["bad_alloc"])
    except (RuntimeError, ValueError) as error:
        return _fault(str(error))
    if step_s is None:
        return Verdict(outcome="invalid", reason="no text can match it")
    if step_s > setup.max_step_s:
        reason = (
            f"a token under it takes {step_s * 1000:.0f} ms, of at most {setup.max_step_s * 1000:.0f}; "
            "use fewer alternatives, optional properties and repetitions within each other"
        )
        return Verdict(outcome="too_costly", reason=reason, compile_s=compile_s, step_s=step_s)
    return Verdict(outcome="sound", compile_s=compile_s, step_s=step_s)


def _fault(text: str) -> Verdict:
    for sign, reason in _KNOWN_FAULTS.items():
        if sign in text:
            return Verdict(outcome="too_costly", reason=reason)
    lines = [_PLACE.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    return Verdict(outcome="invalid", reason=(lines[0] if lines else "xgrammar refuses it")[:500])


def _costliest_step(compiled: Any, vocabulary: int, enough_s: float) -> float | None:
    """Returns the processor time of the costliest token, over walks of random tokens that the grammar allows.

    Ends early once a step takes more than ``enough_s``. None where not even one token is allowed.
    """
    mask = xgrammar.allocate_token_bitmask(1, vocabulary)
    bits = mask.numpy().view(np.uint8)[0]
    worst, ends_at = 0.0, time.thread_time() + WALKS_S
    for seed in range(WALKS):
        matcher = xgrammar.GrammarMatcher(compiled)
        draw = random.Random(seed)
        for position in range(WALK_TOKENS):
            begun = time.thread_time()
            matcher.fill_next_token_bitmask(mask, 0)
            cost = time.thread_time() - begun
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:vocabulary])
            if not len(allowed):
                if position == 0:
                    return None
                break
            begun = time.thread_time()
            matcher.accept_token(int(draw.choice(allowed)))
            worst = max(worst, cost + time.thread_time() - begun)
            if matcher.is_terminated():
                break
            if worst > enough_s or time.thread_time() > ends_at:
                return worst
    return worst
