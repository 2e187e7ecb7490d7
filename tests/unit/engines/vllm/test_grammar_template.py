"""Verdicts on trials that took too long, by the processor time that they had."""

from __future__ import annotations

import pytest

pytest.importorskip("xgrammar")

from triptych.engines.vllm.grammar.template import Template, _Running
from triptych.engines.vllm.grammar.wire import Setup

SETUP = Setup(
    tokenizer="",
    any_whitespace=True,
    separators=None,
    timeout_s=4.0,
    max_step_s=0.1,
    memory_bytes=1 << 30,
    threads=1,
)


@pytest.mark.parametrize(
    ("used_s", "outcome"), [(0.4, "killed"), (0.9, "killed"), (1.1, "too_costly"), (30.0, "too_costly")]
)
def test_a_grammar_is_held_costly_only_where_its_trial_had_the_time(used_s: float, outcome: str) -> None:
    verdict = Template(SETUP, None)._verdict(_Running(7, 0, 0.0, bytearray()), -9, used_s)
    assert (verdict.number, verdict.outcome, verdict.timed_out) == (7, outcome, True)
