"""Only the tensors that are asked for are read, from either layout of files."""

import json

import pytest

from triptych.contracts.errors import ConfigError
from triptych.engines.encoder.weights import Weights

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

TENSORS = {"visual.a": 1.0, "visual.b.weight": 2.0, "lm.head": 3.0, "visually.else": 4.0}


def save(folder, tensors, name="model.safetensors"):
    safetensors_torch.save_file({key: torch.full((2,), value) for key, value in tensors.items()}, folder / name)


def sharded(folder, files):
    index = {}
    for name, tensors in files.items():
        save(folder, tensors, name)
        index.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def values(tensors):
    return {name: tensor[0].item() for name, tensor in tensors.items()}


@pytest.fixture
def requested(monkeypatch):
    """Names of tensors that were read."""
    import safetensors

    names = []
    real = safetensors.safe_open

    class Spy:
        def __init__(self, *args, **kwargs):
            self.file = real(*args, **kwargs)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            names.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Spy)
    return names


def test_one_file(tmp_path, requested):
    save(tmp_path, TENSORS)
    assert values(Weights(tmp_path).under(("visual.",))) == {"a": 1.0, "b.weight": 2.0}
    assert sorted(requested) == ["visual.a", "visual.b.weight"], "nothing else of the file is read"


def test_shards_without_a_vision_tensor_need_not_be_there(tmp_path, requested):
    files = {
        "1.safetensors": {"visual.a": 1.0},
        "2.safetensors": {"visual.b": 2.0, "lm.x": 0.0},
        "3.safetensors": {"lm.y": 0.0},
    }
    sharded(tmp_path, files)
    (tmp_path / "3.safetensors").unlink()
    assert values(Weights(tmp_path).under(("visual.",))) == {"a": 1.0, "b": 2.0}
    assert sorted(requested) == ["visual.a", "visual.b"]


def test_the_first_prefix_that_fits_is_taken(tmp_path):
    save(tmp_path, {"model.visual.a": 1.0, "model.layers.0": 2.0})
    weights = Weights(tmp_path)
    assert values(weights.under(("visual.", "model.visual."))) == {"a": 1.0}
    assert weights.under(("tower.",)) == {}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="has no weights"):
        Weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="as safetensors"):
        Weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not that")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        Weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path, {"1.safetensors": {"visual.a": 1.0}})
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1\.safetensors cannot be read"):
        Weights(tmp_path).under(("visual.",))


def test_an_index_that_names_a_tensor_in_the_wrong_shard(tmp_path):
    sharded(tmp_path, {"1.safetensors": {"visual.a": 1.0}})
    save(tmp_path, {"other": 1.0}, "1.safetensors")
    with pytest.raises(ConfigError, match=r"visual\.a"):
        Weights(tmp_path).under(("visual.",))
