"""Names and folders of models, by what users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.config import env
from triptych.contracts.errors import ConfigError
from triptych.models.names import model_folder, served_name

COMMIT = "0123abc"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with one model, as its own library writes it."""
    repository = tmp_path / "hub" / "models--Qwen--Qwen2-VL-2B-Instruct"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        ("gpt2", "gpt2"),
        ("demo", "demo"),
        ("/data/models/qwen2-vl", "qwen2-vl"),
        ("/data/models/qwen2-vl/", "qwen2-vl"),
        ("/data/models/qwen2-vl/.", "qwen2-vl"),
        ("/data/models/other/../qwen2-vl", "qwen2-vl"),
        ("./models/a/qwen2-vl", "qwen2-vl"),
        ("~/qwen2-vl", "qwen2-vl"),
        ("/c/hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/0123abc", "Qwen/Qwen2-VL-2B-Instruct"),
        ("/c/hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/0123abc/", "Qwen/Qwen2-VL-2B-Instruct"),
        ("/c/hub/models--Qwen--Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        ("/c/hub/models--gpt2/snapshots/0123abc", "gpt2"),
        ("/c/hub/models--org--a--b/snapshots/0123abc", "org/a--b"),
        ("/data/models--old/qwen2-vl", "qwen2-vl"),
        ("/", "/"),
    ],
)
def test_a_name_is_normalised(given: str, name: str) -> None:
    assert served_name(given) == name


def test_a_folder_that_looks_like_an_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert served_name("Qwen/mine") == "mine"
    assert model_folder("Qwen/mine", tmp_path) == Path("Qwen/mine")
    monkeypatch.chdir(tmp_path / "Qwen" / "mine")
    assert served_name(".") == "mine"
    assert served_name("..") == "Qwen"


def test_a_link_to_the_cache_has_the_models_name(cache: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(cache / "models--Qwen--Qwen2-VL-2B-Instruct" / "snapshots" / COMMIT)
    assert served_name(str(link)) == "Qwen/Qwen2-VL-2B-Instruct"


def test_a_cached_model_is_found_by_its_id_and_by_its_folder(cache: Path) -> None:
    repository = cache / "models--Qwen--Qwen2-VL-2B-Instruct"
    snapshot = repository / "snapshots" / COMMIT
    assert model_folder("Qwen/Qwen2-VL-2B-Instruct", cache) == snapshot
    assert model_folder(str(repository), cache) == snapshot
    assert model_folder(str(snapshot), cache) == snapshot


@pytest.mark.parametrize("commit", ["", "../..", "../../../elsewhere", "absent", "."])
def test_a_reference_that_names_no_snapshot_is_not_followed(cache: Path, commit: str) -> None:
    (cache / "models--Qwen--Qwen2-VL-2B-Instruct" / "refs" / "main").write_text(commit)
    with pytest.raises(ConfigError, match="neither a folder nor a model in the cache"):
        model_folder("Qwen/Qwen2-VL-2B-Instruct", cache)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("Qwen/absent", "hf download Qwen/absent"),
        ("absent", "neither a folder nor a model in the cache"),
        ("/absent", "model folder /absent does not exist"),
        ("a/b/c", "model folder a/b/c does not exist"),
        ("../absent", "does not exist"),
    ],
)
def test_what_is_nowhere_is_said(cache: Path, model: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        model_folder(model, cache)


def test_the_cache_is_where_the_hubs_own_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert env.hub_cache() == Path("~/.cache/huggingface/hub").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert env.hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/home/hf")
    assert env.hub_cache() == Path("/home/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/cache")
    assert env.hub_cache() == Path("/cache")
