"""Carriers of the event plane, by the name that ``--events`` has for them."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from support.nats_server import NatsServer
from triptych.planes.events.base import USUAL, EventPace, Publisher, Source
from triptych.planes.events.jetstream import JetStreamReceiver, JetStreamSender
from triptych.planes.events.publish import PubSubPublisher
from triptych.planes.events.request import RequestPublisher, RequestSource
from triptych.planes.events.subscribe import PubSubSource
from triptych.planes.events.zeromq import ZmqReceiver, ZmqSender
from triptych.planes.nats.access import NatsSecrets, read_access
from triptych.planes.request.base import RequestClient

NAMES = ("request", "zmq", "jetstream")


class Carrier:
    """Both ends of one. Of ``jetstream``, the namespace is this object's own."""

    def __init__(
        self,
        name: str = "request",
        server: NatsServer | None = None,
        *,
        namespace: str = "",
        login: str = "",
        pace: EventPace = USUAL,
        **zmq: Any,
    ) -> None:
        """``login``: a file, as for ``--nats-credentials``. ``zmq``: settings of ``ZmqReceiver``."""
        self.name = name
        self.pace = pace
        self.zmq = zmq
        self.access = read_access(server.url, NatsSecrets(), credentials=login) if server else None
        self.namespace = namespace or secrets.token_hex(4)

    def publisher(self, token: str | None = None, host: str = "127.0.0.1") -> Publisher:
        if self.name == "zmq":
            return PubSubPublisher(ZmqSender(host, token), self.pace)
        if self.access is not None:
            return PubSubPublisher(JetStreamSender(self.access, self.namespace), self.pace)
        return RequestPublisher(self.pace)

    def source(self, client: RequestClient, token: str | None = None) -> Source:
        if self.name == "zmq":
            return PubSubSource(client, ZmqReceiver(token, **self.zmq), self.pace)
        if self.access is not None:
            receiver = JetStreamReceiver(self.access, self.namespace, silence_s=self.pace.silence_s)
            return PubSubSource(client, receiver, self.pace)
        return RequestSource(client, self.pace)


QUICK = EventPace(load_period_s=0.02, heartbeat_s=0.1, resync_s=0.01)


def quick_carrier(name: str, server: NatsServer | None = None, **settings: Any) -> Carrier:
    """A carrier whose ends do not wait for long."""
    return Carrier(name, server, **{"pace": QUICK, "first_word_s": 0.2, **settings})


def carrier_of(request: pytest.FixtureRequest) -> Carrier:
    """For a fixture whose parameter is one of ``NAMES``."""
    server = request.getfixturevalue("shared_nats_server") if request.param == "jetstream" else None
    return quick_carrier(request.param, server)
