"""Operators, accounts and users of NATS, as ``nsc`` would make them: nkeys, and JWTs of version 2."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any

import nkeys

_WITHOUT_LIMIT = {"subs": -1, "data": -1, "payload": -1}
_ACCOUNT_LIMITS = {**_WITHOUT_LIMIT, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
_JETSTREAM_LIMITS = {"mem_storage": 64 << 20, "disk_storage": 0, "streams": 4, "consumer": 100}


class Identity:
    """A key pair of one kind: ``OPERATOR``, ``ACCOUNT`` or ``USER``."""

    def __init__(self, kind: str) -> None:
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind}")
        self.seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), prefix)
        self.keys = nkeys.from_seed(bytearray(self.seed))
        self.name: str = self.keys.public_key.decode()

    def vouch(self, subject: Identity, **claims: Any) -> str:
        """A JWT about ``subject``, signed by this one."""
        body = {"iat": int(time.time()), "iss": self.name, "sub": subject.name, "name": "triptych"}
        body |= {"nats": {"version": 2, **claims}}
        digest = hashlib.sha256(json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")
        text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        return f"{text}.{_base64(self.keys.sign(text.encode()))}"


class Operator:
    """One with an account for Triptych, and the system's own. ``settings`` go into a server's configuration."""

    def __init__(self) -> None:
        me, system = Identity("OPERATOR"), Identity("ACCOUNT")
        self._account = Identity("ACCOUNT")
        limits = {**_ACCOUNT_LIMITS, **_JETSTREAM_LIMITS}
        account = me.vouch(self._account, type="account", limits=limits)
        self.settings = f"""
            operator: {me.vouch(me, type="operator")}
            system_account: {system.name}
            resolver: MEMORY
            resolver_preload: {{
                {self._account.name}: {account}
                {system.name}: {me.vouch(system, type="account", limits=_ACCOUNT_LIMITS)}
            }}
        """

    def creds(self, publish: list[str] | None = None, subscribe: list[str] | None = None) -> str:
        """What the ``.creds`` file of a new user holds, who may use these subjects (None: all)."""
        user = Identity("USER")
        rights = {"pub": {"allow": publish} if publish else {}, "sub": {"allow": subscribe} if subscribe else {}}
        jwt = self._account.vouch(user, type="user", **_WITHOUT_LIMIT, **rights)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
