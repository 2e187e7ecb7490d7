"""What the encoder engine knows of a sound before it decodes it."""

import pytest

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")

import numpy as np

from benchmarks.audio_model import audio_checkpoint
from support.checkpoints import picture
from support.sound_files import encoded, tones, wav_says
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, MediaMissing, PayloadTooLarge, UnsupportedMedia
from triptych.contracts.media import FILE_TYPES
from triptych.engines.encoder.plan import plan_medium
from triptych.models.registry import family_of, load_checkpoint

SECOND = encoded(tones(1.0))


@pytest.fixture
def checkpoint(tmp_path):
    return load_checkpoint(str(audio_checkpoint(tmp_path)))


def plan(checkpoint, data, kind="audio", **fields):
    medium = FILE_TYPES[kind](content_hash="x", data=data, **fields)
    return plan_medium(medium, MediaLimits(media_max_audio_s=40), family_of(checkpoint), checkpoint)


@pytest.mark.parametrize(
    ("seconds", "rate", "tokens"), [(1.0, 16_000, 25), (1.0, 48_000, 25), (0.5, 8_000, 12), (35.0, 8_000, 750)]
)
def test_the_place_of_a_sound(checkpoint, seconds, rate, tokens):
    made = plan(checkpoint, encoded(tones(seconds, rate), rate), num_samples=7, sample_rate=9)  # which is not believed
    assert made.shape == (tokens, 64)
    assert made.patches == 1500, "the tower pads: every sound costs as much"
    assert made.metadata == {}
    assert made.memory_bytes == 4 * (round(seconds * 16_000) + 3000 * 128)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MediaMissing),
        (encoded(np.zeros(320)), BadRequest),
        (SECOND[:100], BadRequest),
        (wav_says(SECOND, "channels", 9), UnsupportedMedia),
        (encoded(np.zeros(41 * 8_000), 8_000), PayloadTooLarge),
    ],
    ids=["none", "too short", "truncated", "channels", "too long"],
)
def test_what_a_sound_is_refused_for(checkpoint, data, error):
    with pytest.raises(error):
        plan(checkpoint, data)


def test_a_picture_for_a_model_that_hears(checkpoint):
    with pytest.raises(UnsupportedMedia, match="audio is needed here, not image"):
        plan(checkpoint, picture(), kind="image")
