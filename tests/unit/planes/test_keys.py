"""Names as keys and back."""

from __future__ import annotations

import pytest

from triptych.planes.keys import key_of, name_of


@pytest.mark.parametrize("name", ["a", "A-b_9", "a.b", "=", "ä€😀", " ", "\0", "..", "a/b", "*>"])
def test_a_key_tells_its_name(name: str) -> None:
    key = key_of(name)
    assert not set(key) & set("./ *>\0")
    assert key.isascii()
    assert name_of(key) == name


@pytest.mark.parametrize("key", ["=", "=4", "=zz", "=41", "=e4", "=FF", "a.b", "ä", "a=", "=2e"])
def test_what_is_no_key_has_no_name(key: str) -> None:
    assert name_of(key) is None
