"""Defines the errors of JetStream in our own terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
from nats.js import errors as js_errors

from triptych.contracts.errors import ConfigError
from triptych.planes.nats.link import NatsProblem

_NO_JETSTREAM = (10039, 10076)
_NO_JETSTREAM_WORDS = "the NATS server has no JetStream; run nats-server with --jetstream, and allow it to this account"


class StreamGone(NatsProblem):
    """The stream or its consumer is gone: the server was restarted, or somebody deleted it."""


class NoJetStream(ConfigError):
    """The server has no JetStream, so it stores nothing."""


@contextmanager
def problems(doing: str) -> Iterator[None]:
    """Turns errors within the block into NatsProblem or NoJetStream."""
    try:
        yield
    except (js_errors.NoStreamResponseError, js_errors.NotFoundError) as error:
        raise StreamGone(f"{doing}: it is gone") from error
    except js_errors.ServiceUnavailableError as error:
        if error.err_code is None or error.err_code in _NO_JETSTREAM:  # None: JetStream did not answer
            raise NoJetStream(f"{doing}: {_NO_JETSTREAM_WORDS}") from error
        raise NatsProblem(f"{doing}: {error}") from error
    except nats.errors.NoRespondersError as error:
        raise NoJetStream(f"{doing}: {_NO_JETSTREAM_WORDS}") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise NatsProblem(f"{doing}: {error or type(error).__name__}") from error
