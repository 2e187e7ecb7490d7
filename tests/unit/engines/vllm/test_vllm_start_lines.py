"""Why vLLM did not start, in one line: of its engine's process, that process's own words."""

from __future__ import annotations

import pytest

from triptych.engines.vllm.start_lines import root_cause

FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
LOGGED = """\
(EngineCore pid=7) INFO 12-01 11:18:41 [core.py:133] KeyError: is not the cause
(EngineCore pid=7) ERROR 12-01 11:18:41 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=7) ERROR 12-01 11:18:41 [core.py:1510]     raise ValueError(
(EngineCore pid=7) ERROR 12-01 11:18:41 [core.py:1510] ValueError: No available memory for the cache blocks.
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (LOGGED, "ValueError: No available memory for the cache blocks."),
        (LOGGED + "Traceback\nsafetensors.SafetensorError: it is cut\nmore\n", "SafetensorError: it is cut"),
        ("(EngineCore pid=7) torch.OutOfMemoryError: no memory\n", "OutOfMemoryError: no memory"),
        ("", None),
        ("a line that says Error: nothing\n", None),
    ],
)
def test_the_cause_is_what_the_engine_s_process_raised_last(output: str, expected: str | None) -> None:
    assert root_cause(FAILED, output) == expected


def test_an_error_of_this_process_is_its_own_cause() -> None:
    assert root_cause(ValueError("bad flag"), LOGGED) is None
