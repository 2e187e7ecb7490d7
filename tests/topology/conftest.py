"""Deployments that the cases of one module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.background import Served, served
from triptych.config.media import MediaLimits

TIGHT = MediaLimits(media_max_bytes=20_000, media_max_pixels=10_000, media_min_side_px=4, media_max_items=3)


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    """The demo model on one mock worker, media allowed."""
    with served() as one:
        yield one


@pytest.fixture(scope="module")
def short() -> Iterator[Served]:
    """A context of 64 tokens, tight limits everywhere."""
    frontend = {"max_body_bytes": 60_000, "max_choices": 3, "max_stop_strings": 2}
    with served(engine_args=("--max-model-len", "64"), frontend=frontend, limits=TIGHT) as one:
        yield one


@pytest.fixture(scope="module")
def text_only() -> Iterator[Served]:
    """Media are turned off, as they are by default."""
    with served(frontend={"enable_multimodal": False}) as one:
        yield one
