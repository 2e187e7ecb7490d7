import json

import pytest

from support.checkpoints import copy_demo
from triptych.contracts.errors import ConfigError
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.registry import TEXT_ONLY, family_of, load_checkpoint


def test_the_family_comes_from_the_config_not_from_the_name(tmp_path):
    assert family_of(load_checkpoint(str(MODEL_DIR))).name == "qwen-vl"
    assert family_of(Checkpoint("Qwen2-VL-7B", {"model_type": "llama"})) is TEXT_ONLY
    assert family_of(Checkpoint("x", {})) is TEXT_ONLY
    assert family_of(Checkpoint("x", {"model_type": "qwen2_5_vl"})).name == "qwen-vl"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_checkpoint(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json is not a JSON object"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"text_config": {"max_position_embeddings": 200}, "max_position_embeddings": 5}, 200),
        ({"n_positions": 300}, 300),
        ({"llm_config": {"seq_length": 400}}, 400),
        ({}, 0),
        ({"max_position_embeddings": None}, 0),
    ],
)
def test_the_context_length_is_found_wherever_it_stands(config, length):
    assert Checkpoint("x", config).context_length == length


def test_generation_defaults_are_read(tmp_path):
    folder = copy_demo(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 9}))
    assert load_checkpoint(str(folder)).generation == {"top_k": 9}
