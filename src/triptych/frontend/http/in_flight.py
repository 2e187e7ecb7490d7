"""Counts the requests and generations of a frontend, and limits the generations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from triptych.contracts.errors import BadRequest, TooManyRequests
from triptych.contracts.metric import Metric, gauge


class InFlight:
    """Counts requests and their generations (each choice of each prompt). For one event loop."""

    def __init__(self, max_generations: int) -> None:
        self.requests = 0
        self.generations = 0
        self._max = max_generations

    @contextmanager
    def request(self) -> Iterator[InFlightRequest]:
        """Counts one request within the block. Raises TooManyRequests if not even one generation fits now."""
        self.check(1)
        counted = InFlightRequest(self)
        self.requests += 1
        try:
            yield counted
        finally:
            self.requests -= 1
            self.generations -= counted.count

    def check(self, count: int, held: int = 0) -> None:
        """Raises TooManyRequests if ``count`` generations do not fit, of which ``held`` are counted already."""
        others = self.generations - held
        if others + count > self._max:
            raise TooManyRequests(
                f"{others} generations are under way, and {count} more would be over the limit of "
                f"{self._max} (--max-in-flight)",
                code="too_many_requests",
            )

    def check_ever(self, count: int, param: str) -> None:
        """Raises BadRequest if a request has more generations than may ever be in flight."""
        if count > self._max:
            raise BadRequest(
                f"{param}: the request is {count} generations (prompts x n); the limit is {self._max} "
                "(--max-in-flight)",
                param=param,
                code="too_many_generations",
            )

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics."""
        text = "Generations under way: each choice of each prompt of a request."
        yield gauge("triptych_generations_in_flight", text, self.generations)
        text = "The most generations that may be under way (--max-in-flight)."
        yield gauge("triptych_generations_in_flight_limit", text, self._max)


class InFlightRequest:
    """The generations of one request that are counted as in flight."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.count = 0

    def set_generations(self, count: int, param: str) -> None:
        """Counts ``count`` generations in all. Raises BadRequest if so many never fit, TooManyRequests if not now."""
        self._in_flight.check_ever(count, param)
        self._in_flight.check(count, held=self.count)
        self._in_flight.generations += count - self.count
        self.count = count
