"""What a decoder that a medium has taken over can do: nothing that decoding does not need."""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest

import triptych
from support.media_files import picture
from support.sound_files import encoded, tones
from support.videos import video
from triptych.cache.lru import ByteLru
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError, Unavailable
from triptych.contracts.media import Picture
from triptych.media.embeddings import pt_reader
from triptych.media.sandbox import landlock, process, seccomp
from triptych.media.sandbox.confinement import Confinement
from triptych.media.sandbox.pool import Sandbox
from triptych.media.sandbox.readable import folders_for

PARENT = Path(__file__).parents[3] / "support" / "hostile_parent.py"
NOBODY = 65_534
pytestmark = pytest.mark.skipif(not seccomp.is_available(), reason="no seccomp filters for this architecture")


@pytest.fixture
def folder():
    """Anybody's, with a file that anybody may read."""
    made = Path(tempfile.mkdtemp(prefix="triptych-hostile-"))
    made.chmod(0o777)
    (made / "secret").write_text("secret")
    (made / "secret").chmod(0o666)
    yield made
    shutil.rmtree(made)


def as_user(user: int | None) -> tuple[str, dict[str, Any]]:
    """(Python, arguments of ``subprocess.run``) with which that user can run it."""
    if user is None:
        return sys.executable, {}
    if os.getuid() != 0:
        pytest.skip("only root can run it as somebody else")
    source = [str(Path(triptych.__file__).parents[1]), sysconfig.get_path("purelib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(source), "HOME": "/nonexistent"}
    who = {"user": user, "group": user, "extra_groups": [], "env": environment, "cwd": "/"}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            subprocess.run([python, "-c", "import av, numpy, PIL"], **who, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python, who
    pytest.skip("others may run no such Python here")


@pytest.mark.parametrize("user", [None, NOBODY], ids=["as we are", "as nobody"])
def test_a_decoder_that_is_taken_over_can_do_nothing(folder, user):
    media = {"image": picture("PNG", 900, 700)}
    if user is not None:  # as we are: test_media_formats_confined.py
        media |= {"video": video(), "audio": encoded(tones(8))}
    given = json.dumps({kind: base64.b64encode(data).decode() for kind, data in media.items()})
    python, who = as_user(user)
    ran = subprocess.run(
        [python, str(PARENT), str(folder)], input=given.encode(), capture_output=True, timeout=60, check=False, **who
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found = json.loads(ran.stdout)
    free = found.pop("unconfined")
    for name in ("parent's environment", "a secret", "write /tmp", "socket AF_INET SOCK_DGRAM", "fork", "pipe"):
        assert name in free["reached"], f"outside of the sandbox, too, {name} is out of reach: this proves nothing"
    for way, what in found.items():
        assert what["reached"] == [], f"{way} ({what['confinement']})"
        assert what["refused"] > (100 if platform.machine() == "x86_64" else 50)
        if user is not None:
            assert what["decoded"][0] == 900 * 700
            assert min(what["decoded"]) > 1000
    if landlock.version():
        assert "Landlock" in found["as it is"]["confinement"]
    assert "Landlock" not in found["no-landlock no-namespaces"]["confinement"]


async def test_a_reader_of_pt_files_that_is_taken_over_can_do_nothing(folder, monkeypatch):
    monkeypatch.setattr(pt_reader, "COMMAND", (str(PARENT.with_name("hostile_pt.py")),))

    with pytest.raises(BadRequest) as caught:
        await pt_reader.PtReader(MediaLimits(), ByteLru(0)).as_safetensors(str(folder).encode(), "item")
    found = json.loads(caught.value.message.removeprefix("item: "))
    assert found["reached"] == []
    assert found["refused"] > (100 if platform.machine() == "x86_64" else 50)


def levels(sandbox: Sandbox) -> dict[str, float]:
    return {one.name: one.value for one in sandbox.metrics() if "sandbox" in one.name}


@pytest.mark.parametrize(
    ("offered", "level", "words"),
    [
        (Confinement(landlock=3, seccomp=True), 2, "Landlock 3 + seccomp"),
        (Confinement(seccomp=True), 1, "seccomp"),
        (Confinement(landlock=3), 0, "Landlock 3"),
        (Confinement(), 0, "resource limits alone"),
    ],
)
async def test_the_confinement_of_decoders_is_told_at_start(monkeypatch, caplog, offered, level, words):
    monkeypatch.setattr(landlock, "version", lambda: offered.landlock)
    monkeypatch.setattr(seccomp, "is_available", lambda: offered.seccomp)
    caplog.set_level("INFO", "triptych.media")

    async def main(required):
        sandbox = Sandbox(MediaLimits(media_require_sandbox=required))
        try:
            return levels(sandbox)
        finally:
            await sandbox.close()

    assert await main(False) == {
        "triptych_media_sandbox_level": level,
        "triptych_media_sandbox_landlock_version": offered.landlock,
    }
    assert f"confined by {words}" in caplog.text
    assert [one.levelname for one in caplog.records] == ["INFO" if level else "WARNING"]
    if level:
        await main(True)
    else:
        with pytest.raises(ConfigError, match=r"\(--media-require-sandbox\)"):
            await main(True)


@pytest.mark.parametrize("required", [False, True])
async def test_a_decoder_that_is_confined_less_than_offered_is_told_or_not_used(monkeypatch, caplog, required):
    monkeypatch.setattr(process, "COMMAND", (str(PARENT.with_name("hostile_decoder.py")), "unconfined"))
    sandbox = Sandbox(MediaLimits(media_decode_workers=1, media_require_sandbox=required))
    try:
        medium = Picture(content_hash="", data=picture())
        if required:
            with pytest.raises(Unavailable):
                await sandbox.decode(medium, "item")
            assert sandbox.pids == []
        else:
            assert (await sandbox.decode(medium, "item")).size == (16, 8)
            assert levels(sandbox)["triptych_media_sandbox_level"] == 0
            assert "is confined by resource limits alone only" in caplog.text
    finally:
        await sandbox.close()


def test_packages_outside_of_the_usual_places_are_read_and_nothing_beside_them(monkeypatch, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").touch()
    (tmp_path / "alone.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    folders = folders_for(("outside.*", "alone", "not_there_at_all"))
    assert {one for one in folders.readable if one.startswith(str(tmp_path))} == {
        *(f"{tmp_path}/outside{suffix}" for suffix in ("", ".libs", ".dylibs")),
        *(f"{tmp_path}/alone{suffix}" for suffix in (".py", ".libs", ".dylibs")),
    }
    assert folders.listed == (str(tmp_path),)
    assert all(os.path.isabs(one) for one in folders.readable)
