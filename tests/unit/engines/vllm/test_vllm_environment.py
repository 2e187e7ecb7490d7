"""What is set for vLLM's processes before they start."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from triptych.engines.vllm.environment import keep_to_loopback

HERE = {
    "nnodes": 1,
    "distributed_executor_backend": None,
    "data_parallel_size": 1,
    "data_parallel_size_local": None,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "lo"),
        ({"distributed_executor_backend": "mp"}, "lo"),
        ({"data_parallel_size": 4, "data_parallel_size_local": 4}, "lo"),
        ({"nnodes": 2}, None),
        ({"distributed_executor_backend": "ray"}, None),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2}, None),
    ],
)
def test_process_groups_of_one_host_listen_on_loopback(monkeypatch, changes, expected):
    monkeypatch.setattr(os, "environ", {})
    keep_to_loopback(SimpleNamespace(**{**HERE, **changes}))
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"GLOO_SOCKET_IFNAME": "eth1"})
    keep_to_loopback(SimpleNamespace(**HERE))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"
