"""What is known of a Qwen2-Audio checkpoint, with and without the values that checkpoints leave out."""

import json

import pytest

from triptych.contracts.media import Sound
from triptych.models.base import Checkpoint
from triptych.models.qwen2_audio import FAMILY, audio_tokens, sample_rate
from triptych.models.registry import family_of, load_checkpoint

# As the published 7B model has it: what its classes say already is left out.
PUBLISHED = {
    "model_type": "qwen2_audio",
    "audio_token_index": 151646,
    "audio_config": {"model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "d_model": 1280},
    "text_config": {"model_type": "qwen2", "max_position_embeddings": 8192, "vocab_size": 156032},
}
EXTRACTOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "chunk_length": 30,
    "hop_length": 160,
    "sampling_rate": 16000,
}
SOUND = FAMILY.media["audio"]


def checkpoint(extractor=EXTRACTOR, **changes):
    return Checkpoint("x", {**PUBLISHED, **changes}, feature_extractor=extractor)


def sound(samples, rate=16_000):
    return Sound(content_hash="x", format="WAV", num_samples=samples, sample_rate=rate)


def test_the_published_model():
    assert family_of(checkpoint()) is FAMILY
    assert FAMILY.modalities == ("audio",)
    assert SOUND.placeholder(checkpoint()) == 151646
    assert SOUND.settings(checkpoint()) == {"decode_rate": 16000}
    assert SOUND.metadata(checkpoint(), sound(16_000)) == {}
    assert FAMILY.embedding_width(checkpoint()) == 4096
    assert checkpoint().context_length == 8192


def test_the_placeholder_by_its_newer_name():
    config = {key: value for key, value in PUBLISHED.items() if key != "audio_token_index"}
    assert SOUND.placeholder(Checkpoint("x", {**config, "audio_token_id": 7})) == 7


def test_the_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    whole = transformers.Qwen2AudioConfig()
    extractor = transformers.WhisperFeatureExtractor()
    bare = Checkpoint("x", {"model_type": "qwen2_audio"})
    assert SOUND.placeholder(bare) == whole.audio_token_index
    assert FAMILY.embedding_width(bare) == whole.text_config.hidden_size
    assert sample_rate(bare) == extractor.sampling_rate
    longest = extractor.chunk_length * extractor.sampling_rate
    assert audio_tokens(bare, longest) == audio_tokens(bare, 10 * longest) == audio_tokens(checkpoint(), longest) == 750


@pytest.mark.parametrize("chunk_s", [2, 30])
def test_tokens_are_those_of_transformers(chunk_s):
    """Over each length at which the count may change, and beyond what the model hears."""
    np = pytest.importorskip("numpy")
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=4, chunk_length=chunk_s)
    known = checkpoint({**EXTRACTOR, "chunk_length": chunk_s})
    edges = range(160, 2 * 16_000, 160) if chunk_s == 2 else (0, 160, 320, 16_000, 479_680, 480_000, 500_000)
    lengths = sorted({max(1, edge + step) for edge in edges for step in (-1, 0, 1)})
    for length in lengths:
        made = extractor(np.zeros(length, np.float32), sampling_rate=16_000, return_attention_mask=True)
        frames = int(np.asarray(made["attention_mask"]).sum())
        expected = (((frames - 1) // 2 + 1) - 2) // 2 + 1  # Qwen2AudioProcessor._process_audio
        if expected:
            assert audio_tokens(known, length) == expected, length
        else:
            with pytest.raises(ValueError, match="at least 321 samples"):
                audio_tokens(known, length)


def test_tokens_are_those_of_the_encoder():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen2_audio.modeling_qwen2_audio")
    lengths = torch.arange(3, 3001)
    _, expected = module.Qwen2AudioEncoder._get_feat_extract_output_lengths(None, lengths)
    assert [audio_tokens(checkpoint(), 160 * frames) for frames in lengths.tolist()] == expected.tolist()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_files_own_rate_does_not_matter(rate):
    assert SOUND.tokens(checkpoint(), sound(rate * 3, rate)) == audio_tokens(checkpoint(), 48_000)


@pytest.mark.parametrize("newer", [False, True], ids=["preprocessor_config", "processor_config"])
def test_the_rate_is_read_from_the_checkpoint(tmp_path, newer):
    extractor = {**EXTRACTOR, "sampling_rate": 24_000}
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    name, content = "preprocessor_config.json", extractor
    if newer:
        name, content = "processor_config.json", {"feature_extractor": extractor}
    (tmp_path / name).write_text(json.dumps(content))
    assert sample_rate(load_checkpoint(str(tmp_path))) == 24_000
