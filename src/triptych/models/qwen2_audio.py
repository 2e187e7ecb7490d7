"""Describes Qwen2-Audio, which takes the first seconds of a sound as a mel spectrogram.

A convolution and a pooling reduce the number of its frames.
"""

from __future__ import annotations

from triptych.contracts.media import Sound
from triptych.models.base import Checkpoint, ModelFamily, Sounds
from triptych.models.precomputed import count_rule

# Defaults of transformers 5.19, for checkpoints that leave them out: WhisperFeatureExtractor, Qwen2AudioConfig and,
# where there is no text_config at all, Qwen2Config.
_RATE_HZ, _HOP_SAMPLES, _CHUNK_S = 16_000, 160, 30
_AUDIO_TOKEN = 151_646
_HIDDEN_SIZE = 4096
_POSITIONS, _MEL_BINS = 1500, 128
"""Defaults of transformers' Qwen2AudioEncoderConfig."""


def sample_rate(checkpoint: Checkpoint) -> int:
    """Returns the sample rate that the model takes, in Hz."""
    return int(checkpoint.feature_extractor.get("sampling_rate") or _RATE_HZ)


def audio_token(checkpoint: Checkpoint) -> int:
    """Returns the placeholder: ``audio_token_index``, in newer checkpoints ``audio_token_id``."""
    stated = {"audio_token_id": _AUDIO_TOKEN, **checkpoint.config}
    return int(stated.get("audio_token_index", stated["audio_token_id"]))


def audio_tokens(checkpoint: Checkpoint, samples: int) -> int:
    """Returns the tokens of a sound of ``samples`` at the model's rate. Samples beyond a chunk are cut off.

    Each hop that has begun gives a mel frame. The second convolution and the pooling each halve the number of frames,
    as in transformers' ``Qwen2AudioEncoder``; tests compare the two. Raises ValueError for a sound that becomes no
    token.
    """
    settings = checkpoint.feature_extractor
    hop = int(settings.get("hop_length") or _HOP_SAMPLES)
    used = min(samples, _chunk(checkpoint))
    frames = -(-used // hop)
    tokens = (_halved(frames) - 2) // 2 + 1
    if tokens < 1:
        min_samples = 2 * hop + 1
        raise ValueError(
            f"the sound is too short: it takes at least {min_samples} samples at {sample_rate(checkpoint)} Hz"
        )
    return tokens


def max_tokens(checkpoint: Checkpoint) -> int:
    """Returns the number of tokens of the longest sound that the model takes."""
    return audio_tokens(checkpoint, _chunk(checkpoint))


def _chunk(checkpoint: Checkpoint) -> int:
    """Returns the maximum number of samples that the model takes, at its own rate."""
    return int(checkpoint.feature_extractor.get("chunk_length") or _CHUNK_S) * sample_rate(checkpoint)


def _halved(length: int) -> int:
    """Returns the length after a convolution of width 3, stride 2 and padding 1."""
    return (length - 1) // 2 + 1


def positions(checkpoint: Checkpoint) -> int:
    """Returns the number of positions of the audio tower, which pads every sound to the longest."""
    return int((checkpoint.config.get("audio_config") or {}).get("max_source_positions") or _POSITIONS)


def features(checkpoint: Checkpoint) -> int:
    """Returns the number of values of the longest sound's mel spectrogram. Two of its frames become a position."""
    bins = (checkpoint.config.get("audio_config") or {}).get("num_mel_bins") or _MEL_BINS
    return 2 * positions(checkpoint) * int(bins)


def _tokens(checkpoint: Checkpoint, medium: Sound) -> int:
    rate = medium.sample_rate or sample_rate(checkpoint)
    return audio_tokens(checkpoint, -(-medium.num_samples * sample_rate(checkpoint) // rate))


def embedding_width(checkpoint: Checkpoint) -> int:
    """Returns the language model's hidden size, which the projector's output has."""
    return int(checkpoint.text_config.get("hidden_size", _HIDDEN_SIZE))


FAMILY = ModelFamily(
    name="qwen2-audio",
    model_types=("qwen2_audio",),
    sounds=Sounds(
        placeholder=audio_token,
        text="<|audio_bos|><|AUDIO|><|audio_eos|>",
        tokens=_tokens,
        decode_rate=sample_rate,
        features=features,
        patches=lambda checkpoint, medium: positions(checkpoint),
        template_keys={"audio": ""},  # older templates know a sound by this key, not by its type
        precomputed=count_rule(lambda checkpoint: 1, max_tokens),
    ),
    embedding_width=embedding_width,
)
