"""Workers with TLS and without, as frontends of either kind see them."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from support.instances import instance
from triptych.contracts.card import Instance
from triptych.planes.discovery.base import Lease
from triptych.planes.discovery.reachable import Reachable

PLAIN, SECURE = instance("plain"), instance("secure", tls=True)


class NumberedUpdate:
    """A discovery of given snapshots."""

    def __init__(self, *snapshots: tuple[Instance, ...]) -> None:
        self._snapshots = snapshots

    async def register(self, instance: Instance) -> Lease:
        raise NotImplementedError

    async def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        for one in self._snapshots:
            yield one

    def doubt(self, model: str) -> str | None:
        return None


@pytest.mark.parametrize(
    ("tls", "seen", "why"), [(True, SECURE, "plain at .* has no TLS"), (False, PLAIN, "secure at .* give --tls-ca")]
)
async def test_a_left_out_worker_is_named_once(
    tls: bool, seen: Instance, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = Reachable(NumberedUpdate((PLAIN, SECURE), (PLAIN, SECURE), (), (PLAIN, SECURE)), tls=tls)

    async def main() -> list[tuple[Instance, ...]]:
        seen = []
        async with aclosing(discovery.watch()) as snapshots:
            async for one in snapshots:
                seen.append(one)
                told = discovery.doubt("demo")
                assert told is None if not one else told is not None and "TLS" in told, "a model of theirs exists"
        return seen

    with caplog.at_level(logging.INFO):
        assert await main() == [(seen,), (seen,), (), (seen,)]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2, "again only after it was gone"
    assert all(re.search(why, one.getMessage()) for one in caplog.records)
