"""Configures the frontend's HTTP server: its address, and the limits of its connections."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

DEFAULT_PORT = 8000


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server."""

    host: Annotated[str, Meta(description="Address to listen on; `localhost`: 127.0.0.1 and ::1.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT
    reuse_port: Annotated[
        bool,
        Meta(
            description="Share the port with other frontends that have this flag (SO_REUSEPORT). The system spreads "
            "connections over them."
        ),
    ] = False
    allowed_origins: Annotated[
        str,
        Meta(
            description="Sites whose pages may use this server from a browser (CORS), separated by commas: "
            "`https://chat.example`, or `*` for all (default: none)."
        ),
    ] = ""
    allowed_hosts: Annotated[
        str,
        Meta(
            description="Further names that a server on loopback without an API key accepts in the header `Host`, "
            "beside addresses and local names, separated by commas; `*` accepts any. Needed behind a "
            "proxy that passes its own name on."
        ),
    ] = ""
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of connections. A new one replaces an idle or silent one. If all are busy it "
            "gets 503, unless it asks for `/live`, `/ready`, `/health` or `/metrics`. 0: 16384, or what "
            "the limit on open files allows.",
        ),
    ] = 0
    max_connections_per_address: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of connections from one address (IPv6: from one /64). More are treated in the "
            "same way, with 429. 0: half of `--max-connections`. Behind a proxy, set both to the same "
            "value.",
        ),
    ] = 0
    head_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            description="Time limit for a request's head, from the start of the connection or the head's first byte.",
        ),
    ] = 20.0
    keep_alive_timeout_s: Annotated[
        float, Meta(gt=0, description="How long a connection stays open between two requests.")
    ] = 75.0
    send_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            description="Longest time in which a client may read nothing of an answer that waits for it. After that "
            "the connection is closed and the request cancelled.",
        ),
    ] = 30.0
    body_timeout_s: Annotated[float, Meta(gt=0, description="Time limit for a client to send its request body.")] = 60.0
    min_body_bytes_per_s: Annotated[
        int,
        Meta(ge=0, description="Minimum average rate of a request body that takes longer than 10 s; 0: no minimum."),
    ] = 1024
