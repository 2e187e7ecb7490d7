import pytest

from triptych.media.naming import content_hash


def test_is_stable():
    # Names may be stored: a change of this value needs a new scheme tag.
    assert content_hash("image", b"abc", {"b": "2", "a": "1"}) == content_hash("image", b"abc", {"a": "1", "b": "2"})
    assert len(content_hash("image", b"")) == 64
    assert content_hash("image", b"abc") == "b5ae2edef23fea9736bef2c9eb40ef83995371f74520c245c0ca796d066da998"


@pytest.mark.parametrize(
    "other",
    [
        ("video", b"abc", {}),
        ("image", b"abd", {}),
        ("image", b"abc", {"a": "1"}),
        ("image", b"abc", {"a": "2"}),
        ("image", b"1abc", {"a": ""}),
        ("image", b"c", {"ab": ""}),
    ],
)
def test_everything_that_shapes_the_content_shapes_the_name(other):
    assert content_hash("image", b"abc", {}) != content_hash(*other)


def test_fields_do_not_run_into_each_other():
    assert content_hash("image", b"", {"a": "bc"}) != content_hash("image", b"", {"ab": "c"})
    assert content_hash("image", b"x", {"a": "b"}) != content_hash("image", b"bx", {"a": ""})
