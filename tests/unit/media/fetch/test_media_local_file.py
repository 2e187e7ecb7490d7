import os
import threading

import pytest

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError, PayloadTooLarge, TriptychError
from triptych.media.byte_limit import ByteLimit
from triptych.media.fetch import local_file
from triptych.media.fetch.local_file import LocalFiles, parse_path

ITEM = "messages[0].content[1].image_url"
DATA = b"picture"


async def read(folder, url, size_bytes=100, **limits):
    files = LocalFiles(str(folder) if folder else None, MediaLimits(**limits))
    try:
        return await files.read(url, ITEM, ByteLimit(size_bytes))
    finally:
        files.close()


async def refused(folder, url, kind=BadRequest, **settings):
    with pytest.raises(TriptychError) as caught:
        await read(folder, url, **settings)
    error = caught.value
    assert type(error) is kind, error.message
    assert error.message.startswith(f"{ITEM}: ")
    assert error.param == ITEM
    assert str(folder) not in error.message
    for leak in ("Errno", "No such", "secret", "/etc", "Permission"):
        assert leak not in error.message
    return error


@pytest.fixture
def site(tmp_path):
    """A folder ``open`` that may be read, beside one that may not."""
    allowed, other = tmp_path / "open", tmp_path / "open-not"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "a b.png").write_bytes(DATA)
    (other / "secret").write_bytes(b"secret")
    return allowed


async def test_reads_files_in_the_folder_and_below(site):
    (site / "sub").mkdir()
    (site / "sub" / "bücher%41.png").write_bytes(b"other")
    assert await read(site, f"file://{site}/a%20b.png") == DATA
    assert await read(site, f"FILE://{site}/sub/b%c3%bccher%2541.png") == b"other"
    assert await read(f"{site}/../open/", f"file://{site}/a%20b.png") == DATA, (
        "the folder's own spelling does not matter"
    )


async def test_links_count_by_where_they_lead(site, tmp_path):
    (site / "inside").symlink_to(site / "a b.png")
    assert await read(site, f"file://{site}/inside") == DATA
    (tmp_path / "entry").symlink_to(site)
    assert await read(tmp_path / "entry", f"file://{tmp_path}/entry/a%20b.png") == DATA
    (site / "out").symlink_to(tmp_path / "open-not" / "secret")
    (site / "folder").symlink_to(tmp_path / "open-not")
    (site / "loop").symlink_to(site / "loop")
    (site / "itself").symlink_to("/proc/self/environ")
    for name in ("out", "folder/secret", "loop", "itself"):
        assert (await refused(site, f"file://{site}/{name}")).code == "media_file_refused"


async def test_what_cannot_be_read_is_refused_alike(site, tmp_path):
    os.mkfifo(site / "fifo")
    (site / "device").symlink_to("/dev/zero")
    (site / "sub").mkdir()
    here = [f"{site}/{name}" for name in ("gone", "fifo", "device", "sub", "a%20b.png/x", "x" * 300)]
    there = [f"{tmp_path}/open-not/secret", f"{tmp_path}/open-not/gone", "/etc/passwd", "/dev/zero", f"{site}"]
    messages = {(await refused(site, f"file://{path}")).message for path in here + there}
    assert len(messages) == 1, "nobody learns what is there"


async def test_a_path_that_changes_after_it_was_looked_at_changes_nothing(site, tmp_path, monkeypatch):
    """The swap comes between finding the file and opening it for reading."""
    real = os.readlink

    def swap(path):
        (site / "a b.png").unlink()
        (site / "a b.png").symlink_to(tmp_path / "open-not" / "secret")
        monkeypatch.setattr(local_file.os, "readlink", real)
        return f"{site}/a b.png".encode()

    monkeypatch.setattr(local_file.os, "readlink", swap)
    assert await read(site, f"file://{site}/a%20b.png") == DATA


@pytest.mark.parametrize(
    "path",
    [
        "host/a",
        "localhost/a",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/./a",
        "//a",
        "/a//b",
        "/a/",
        "/a%2fb",
        "/a%00",
        "/a%0a",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a\\b",
        "/a?b",
        "/a#b",
        "/a b",
        "/a\0",
        "/a%ff",
        "/a%c0%ae%c0%ae/b",
        "/ä",
        "/．．/b",
        "/" + "a" * 9000,
        "",
        "/",
    ],
)
async def test_other_spellings_are_refused(site, path):
    assert (await refused(site, f"file://{path}")).code == "invalid_media_url"
    with pytest.raises(BadRequest):
        parse_path("file:/a", ITEM)


async def test_the_limit_holds_before_and_while_reading(site, monkeypatch):
    assert await read(site, f"file://{site}/a%20b.png", len(DATA)) == DATA
    url = f"file://{site}/a%20b.png"
    with monkeypatch.context() as patch:
        patch.setattr(local_file.os, "read", lambda *_: pytest.fail("it was read"))
        error = await refused(site, url, PayloadTooLarge, size_bytes=len(DATA) - 1)
    assert "6 bytes (--media-max-bytes)" in error.message
    empty = os.stat_result((0o100644, *[0] * 9))
    monkeypatch.setattr(local_file.os, "fstat", lambda file: empty)
    await refused(site, url, PayloadTooLarge, size_bytes=len(DATA) - 1)


async def test_off_by_default_and_says_how_to_turn_it_on():
    error = await refused(None, "file:///etc/passwd")
    assert error.code == "media_file_refused"
    assert "--allowed-local-media-path" in error.message


async def test_a_file_system_that_hangs_is_not_waited_for(site, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(local_file, "_open_under", lambda root, path: go.wait() and os.open("/dev/null", os.O_RDONLY))
    files = LocalFiles(str(site), MediaLimits(media_total_timeout_s=0.1))
    with pytest.raises(BadRequest, match="--media-total-timeout-s") as caught:
        await files.read(f"file://{site}/a%20b.png", ITEM, ByteLimit(10))
    assert caught.value.code == "media_timeout"
    go.set()
    files.close()


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--allowed-local-media-path .*: there is no such folder"):
        LocalFiles(str(tmp_path / "gone"), MediaLimits())
