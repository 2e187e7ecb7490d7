"""Which EC connector an engine gets; nothing here starts one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.vllm.ec import believes, fingerprint, media_args, store_of
from triptych.engines.vllm.flags import VllmFlags
from triptych.models.base import Checkpoint
from triptych.models.registry import load_checkpoint

CHECKPOINT = load_checkpoint(str(MODEL_DIR))


@pytest.fixture
def ec(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``ec_transfer_config`` with vLLM's own class replaced by ``dict``, which needs no vLLM."""
    import sys
    from types import ModuleType

    from triptych.engines.vllm.ec import ec_transfer_config

    stand_in = ModuleType("vllm.config")
    stand_in.ECTransferConfig = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.config", stand_in)
    return ec_transfer_config


@pytest.mark.parametrize(
    ("span", "role"),
    [("e", "ec_producer"), ("p", "ec_consumer"), ("pd", "ec_consumer"), ("ep", "ec_consumer"), ("epd", "ec_consumer")],
)
def test_roles_by_span(ec: Any, tmp_path: Path, span: str, role: str) -> None:
    config = ec(VllmFlags(ec_storage_path=str(tmp_path)), Span(span), CHECKPOINT)
    assert config["ec_role"] == role
    assert config["ec_connector"] == "EcFileConnector"
    extra = config["ec_connector_extra_config"]
    assert Path(extra["shared_storage_path"]).parent == tmp_path
    assert extra["max_bytes"] == 4 << 30
    assert extra["width"] == CHECKPOINT.text_config["hidden_size"]


@pytest.mark.parametrize("span", ["p", "pd", "ep", "epd"])
def test_without_a_path_there_is_none(ec: Any, span: str) -> None:
    assert ec(VllmFlags(), Span(span), CHECKPOINT) is None
    assert store_of(VllmFlags(), Span(span), CHECKPOINT) is None


def test_decoding_is_guarded(ec: Any) -> None:
    config = ec(VllmFlags(), Span.D, CHECKPOINT)
    assert (config["ec_connector"], config["ec_role"]) == ("EcFileConnector", "ec_consumer")


def test_extra_configuration_is_passed_on(ec: Any, tmp_path: Path) -> None:
    flags = VllmFlags(ec_storage_path=str(tmp_path), ec_extra_config='{"max_bytes": 2000000}')
    assert ec(flags, Span.P, CHECKPOINT)["ec_connector_extra_config"]["max_bytes"] == 2_000_000
    store = store_of(flags, Span.P, CHECKPOINT)
    assert store is not None
    assert store.max_bytes == 2_000_000


def test_a_connector_of_the_users_own(ec: Any) -> None:
    flags = VllmFlags(ec_connector_backend="my.module:Mine", ec_extra_config='{"protocol": "tcp"}')
    config = ec(flags, Span.E, CHECKPOINT)
    assert (config["ec_connector_module_path"], config["ec_connector"]) == ("my.module", "Mine")
    assert (config["ec_role"], config["ec_connector_extra_config"]) == ("ec_producer", {"protocol": "tcp"})
    assert store_of(flags, Span.E, CHECKPOINT) is None
    assert believes(flags, Span.P)
    assert not believes(VllmFlags(), Span.P)


PATH = "<a folder>"


@pytest.mark.parametrize(
    ("span", "flags", "says"),
    [
        ("e", {}, "--engine encoder"),
        ("d", {"ec_storage_path": PATH}, "span d reads no embeddings"),
        ("d", {"ec_connector_backend": "my.module:Mine"}, "span d reads no embeddings"),
        ("p", {"ec_connector_backend": "ECMooncakeConnector"}, "no way to tell"),
        ("p", {"ec_connector_backend": ":Mine"}, "known: ECExampleConnector"),
        ("p", {"ec_storage_path": "/no/such/folder"}, "no such folder"),
        ("p", {"ec_storage_path": PATH, "ec_connector_backend": "ECNothing"}, "known: ECExampleConnector"),
        ("p", {"ec_extra_config": '{"max_bytes": 2000000}'}, "without --ec-storage-path"),
        ("p", {"ec_storage_path": PATH, "ec_extra_config": "[1]"}, "not a JSON object"),
        ("p", {"ec_storage_path": PATH, "ec_extra_config": "{"}, "not a JSON object"),
        ("p", {"ec_storage_path": PATH, "ec_extra_config": '{"size": 1}'}, "known: max_bytes"),
        ("p", {"ec_storage_path": PATH, "ec_extra_config": '{"max_bytes": "many"}'}, "max_bytes"),
        ("p", {"ec_storage_path": PATH, "ec_extra_config": '{"max_bytes": -1}'}, "at least"),
    ],
)
def test_wrong_flags_are_named_in_one_line(
    ec: Any, tmp_path: Path, span: str, flags: dict[str, str], says: str
) -> None:
    given = {name: value.replace(PATH, str(tmp_path)) for name, value in flags.items()}
    with pytest.raises(ConfigError, match=says) as refused:
        ec(VllmFlags(**given), Span(span), CHECKPOINT)
    assert "\n" not in str(refused.value)


def test_only_the_producer_makes_its_folder(tmp_path: Path) -> None:
    flags = VllmFlags(ec_storage_path=str(tmp_path))
    consumer = store_of(flags, Span.P, CHECKPOINT)
    assert consumer is not None
    assert not consumer.holds("ab" * 32)
    assert list(tmp_path.iterdir()) == []
    producer = store_of(flags, Span.E, CHECKPOINT)
    assert producer is not None
    assert list(tmp_path.iterdir()) == [producer.folder] == [consumer.folder]


def test_models_do_not_share_embeddings(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"12")
    one = Checkpoint(str(tmp_path), {"a": 1, "b": 2})
    first = fingerprint(one)
    assert fingerprint(Checkpoint(str(tmp_path), {"b": 2, "a": 1})) == first
    assert fingerprint(Checkpoint(str(tmp_path), {"a": 1})) != first
    weights.write_bytes(b"123")
    assert fingerprint(one) != first


def test_processor_cache_is_off_where_it_could_mislead(ec: Any, tmp_path: Path) -> None:
    shared = VllmFlags(ec_storage_path=str(tmp_path))
    for span in ("p", "d", "pd"):
        assert media_args(VllmFlags(), Span(span), CHECKPOINT)["mm_processor_cache_gb"] == 0
    assert media_args(shared, Span.EPD, CHECKPOINT)["mm_processor_cache_gb"] == 0
    assert media_args(VllmFlags(), Span.EPD, CHECKPOINT) == {}


def test_text_models_need_nothing(ec: Any) -> None:
    text = Checkpoint("", {"model_type": "llama"})
    assert media_args(VllmFlags(), Span.D, text) == {}
    with pytest.raises(ConfigError, match="takes no media"):
        media_args(VllmFlags(), Span.E, text)
