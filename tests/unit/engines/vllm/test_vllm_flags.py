"""Triptych's own flags among those of vLLM."""

from __future__ import annotations

import pytest

from triptych.contracts.errors import ConfigError
from triptych.engines.vllm.flags import VllmFlags, split_flags


def test_own_flags_are_taken_out_in_either_spelling() -> None:
    flags, rest = split_flags(
        ("--dtype", "float32", "--ec-storage-path", "/x", "--nixl_side_channel_port=5", "--enforce-eager")
    )
    assert flags == VllmFlags(ec_storage_path="/x", nixl_side_channel_port=5)
    assert rest == ("--dtype", "float32", "--enforce-eager")


def test_values_that_look_like_flags_stay_with_theirs() -> None:
    flags, rest = split_flags(("--ec-extra-config", '{"max_bytes": 1}', "--kv-transfer-config", "{}"))
    assert flags.ec_extra_config == '{"max_bytes": 1}'
    assert rest == ("--kv-transfer-config", "{}")


@pytest.mark.parametrize(
    "words",
    [("--nixl-side-channel-port", "70000"), ("--nixl-side-channel-port", "x"), ("--nixl-side-channel-host",)],
)
def test_wrong_values_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        split_flags(words)
