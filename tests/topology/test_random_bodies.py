"""Random bodies, made from the OpenAPI document: each is answered, and with no fault of the server's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.background import Served, served
from support.checkpoints import picture_url
from support.from_schema import ANYTHING, NAME, TEXT, Bodies

PATHS = {"ChatRequest": "/v1/chat/completions", "CompletionRequest": "/v1/completions"}
MODELS = st.sampled_from(["demo"] * 19 + ["other"])
ROLES = st.sampled_from(["user"] * 6 + ["assistant", "system", "tool", "developer", "function"])
URLS = st.sampled_from([picture_url()] * 6 + ["data:,", "data:image/png;base64,AAAA", "x", ""])
FEW = st.integers(1, 30)
IDS = st.lists(st.integers(0, 200), min_size=1, max_size=5)
PROMPTS = TEXT | IDS | st.lists(TEXT, min_size=1, max_size=3) | st.lists(IDS, min_size=1, max_size=3)
SPECIAL = {
    **{(name, "model"): MODELS for name in PATHS},
    **{(name, "max_tokens"): FEW for name in PATHS},
    **{(name, "n"): st.integers(0, 3) for name in PATHS},
    **{(name, "stop_token_ids"): IDS for name in PATHS},
    ("CompletionRequest", "prompt"): PROMPTS,
    ("ChatRequest", "max_completion_tokens"): FEW,
    ("ChatMessage", "role"): ROLES,
    ("ChatMessage", "refusal"): st.none(),
    ("ImageUrl", "url"): URLS,
    ("MediaUrl", "url"): URLS,
    ("AudioData", "data"): URLS,
}
COUNT = 500
FULL_COUNT = 5_000
"""For each of two routes."""


LIMIT_S = 900.0


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    """In place of the one that other modules have, which ends too early."""
    with served(limit_s=LIMIT_S) as one:
        yield one


@pytest.fixture(scope="module")
def document(demo: Served) -> dict[str, Any]:
    return demo.http.get("/openapi.json").json()


def mutated(body: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Bodies of which one property, at any depth, has become anything, or is there under another name."""

    def change(drawn: tuple[Any, list[int], Any, str, bool]) -> Any:
        value, steps, other, name, renames = drawn
        at = value
        for step in steps:
            keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else []
            if not keys:
                break
            key = keys[-1 - step % len(keys)]  # draws are small numbers more often, and `model` comes first
            if step is steps[-1] or not isinstance(at[key], dict | list) or not at[key]:
                if renames and isinstance(at, dict):
                    at[name] = at.pop(key)
                else:
                    at[key] = other
                break
            at = at[key]
        return value

    return st.tuples(
        body, st.lists(st.sampled_from(range(21)), min_size=1, max_size=6), ANYTHING, NAME, st.booleans()
    ).map(change)


def count(request: pytest.FixtureRequest) -> int:
    return FULL_COUNT if request.config.getoption("--full") else COUNT


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("name", PATHS)
def test_every_body_is_answered(demo: Served, document: dict[str, Any], name: str, request: Any) -> None:
    valid = Bodies(document, SPECIAL).of(name)
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=count(request),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(valid | valid | mutated(valid))
    def ask(body: Any) -> None:
        answer = demo.http.post(PATHS[name], content=json.dumps(body).encode())
        statuses[answer.status_code] += 1
        check(body, answer)

    ask()
    answered = sum(statuses.values())
    assert statuses[200] >= 0.3 * answered, f"too few bodies are right: {statuses}"


def check(body: Any, answer: Any) -> None:
    assert answer.status_code < 500, f"{answer.status_code} {answer.text} for {json.dumps(body)}"
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        return
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer.text.rsplit("data: ", 2)[1], f"{answer.text[-500:]} for {json.dumps(body)}"
