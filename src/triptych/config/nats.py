"""Configures ``triptych nats``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

DEFAULT_PORT = 4222


class NatsServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A NATS server for one deployment; clients need TRIPTYCH_NATS_TOKEN if it is set here."""

    host: Annotated[str, Meta(description="Address to listen on; off loopback, TRIPTYCH_NATS_TOKEN must be set.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT
    run_dir: Annotated[
        str, Meta(description="Folder for its temporary files (default: TRIPTYCH_RUN_DIR, else one per user).")
    ] = ""
