"""How many requests and generations a frontend has, and the bound on the latter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from triptych.contracts.errors import BadRequest, TooManyRequests
from triptych.contracts.metric import Metric, gauge


class InFlight:
    """Counts requests, and the generations that they are: each choice of each prompt. For one event loop."""

    def __init__(self, most: int) -> None:
        self.requests = 0
        self.generations = 0
        self._max = most

    @contextmanager
    def request(self) -> Iterator[Places]:
        """Count one request for the block. Raises TooManyRequests where there is no place for a generation now."""
        self.check(1)
        places = Places(self)
        self.requests += 1
        try:
            yield places
        finally:
            self.requests -= 1
            self.generations -= places.count

    def check(self, count: int, held: int = 0) -> None:
        """Raises TooManyRequests where ``count`` generations of a request that has ``held`` places do not fit."""
        others = self.generations - held
        if others + count > self._max:
            raise TooManyRequests(
                f"{others} generations are under way, and {count} more would be over the limit of "
                f"{self._max} (--max-in-flight)",
                code="too_many_requests",
            )

    def check_ever(self, count: int, param: str) -> None:
        """Raises BadRequest where a request is more generations than there are places at all."""
        if count > self._max:
            raise BadRequest(
                f"{param}: the request is {count} generations (prompts x n); the limit is {self._max} "
                "(--max-in-flight)",
                param=param,
                code="too_many_generations",
            )

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        text = "Generations under way: each choice of each prompt of a request."
        yield gauge("triptych_generations_in_flight", text, self.generations)
        text = "Most generations that may be under way (--max-in-flight)."
        yield gauge("triptych_generations_in_flight_limit", text, self._max)


class Places:
    """The generations of one request."""

    def __init__(self, all_of_them: InFlight) -> None:
        self._all = all_of_them
        self.count = 0

    def take(self, count: int, param: str) -> None:
        """Have ``count`` in all. Raises BadRequest where so many never fit, TooManyRequests where they do not now."""
        self._all.check_ever(count, param)
        self._all.check(count, held=self.count)
        self._all.generations += count - self.count
        self.count = count
