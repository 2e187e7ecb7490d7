"""Tests UCX's environment, and the messages on machines that do not suit it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from triptych.contracts.errors import ConfigError
from triptych.transfer.nixl import ucx


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("UCX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_without_a_device_no_transport_listens():
    ucx.prepare("none")
    transports = os.environ["UCX_TLS"].split(",")
    assert {"self", "posix", "cma"} <= set(transports)
    assert not {"tcp", "all", "ib", "sm", "shm", "sysv"} & set(transports)
    assert os.environ["UCX_NET_DEVICES"] == "lo"


def test_a_named_device_is_the_only_one_with_all_transports(monkeypatch):
    ucx.prepare("eth0")
    with_room(monkeypatch, 0)
    ucx.require_room()
    assert os.environ["UCX_NET_DEVICES"] == "eth0"
    assert "UCX_TLS" not in os.environ


def test_settings_of_the_user_are_kept(monkeypatch):
    os.environ.update(UCX_TLS="tcp", UCX_NET_DEVICES="eth1")
    ucx.prepare("none")
    assert (os.environ["UCX_TLS"], os.environ["UCX_NET_DEVICES"]) == ("tcp", "eth1")
    with_room(monkeypatch, 0)
    ucx.require_room()


def with_room(monkeypatch, free):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1 << 20))


def test_too_little_shared_memory_is_refused_before_ucx_crashes(monkeypatch):
    ucx.prepare("none")
    with_room(monkeypatch, 24)
    ucx.require_room()
    with_room(monkeypatch, 16)
    with pytest.raises(ConfigError, match="24 MiB free in /dev/shm, and there are 16"):
        ucx.require_room()


@pytest.mark.parametrize(("scope", "refused"), [("0", False), ("1", False), ("2", True), ("3", True)])
def test_the_reason_for_no_direct_copy_is_told(monkeypatch, tmp_path, scope, refused):
    (tmp_path / "ptrace_scope").write_text(f"{scope}\n")
    monkeypatch.setattr(ucx, "YAMA", tmp_path / "ptrace_scope")
    why = ucx.why_no_direct_copy()
    assert (why is not None and f"ptrace_scope is {scope}" in why) is refused
    monkeypatch.setattr(ucx, "YAMA", tmp_path / "none")
    assert ucx.why_no_direct_copy() is None
