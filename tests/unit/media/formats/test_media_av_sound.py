"""Sounds that FFmpeg reads: the same facts, limits and refusals as for others."""

import random
import tracemalloc
from io import BytesIO

import pytest

pytest.importorskip("av", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

import av
import numpy as np
import soxr
from test_media_audio import ITEM, LIMITS, decode
from test_media_wav_sizes import ID3

from support.av_sounds import CODECS, av_sound
from support.sound_files import tones
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, UnsupportedMedia
from triptych.media.formats.audio import inspect_audio
from triptych.media.formats.av_sound import CONTAINERS

RATE = 48_000
STEREO = np.stack([tones(1.0, RATE), tones(1.0, RATE, seed=2)], axis=1)
FILES = {kind: av_sound(STEREO, RATE, kind) for kind in CODECS}


def by_pyav(data):
    """As inference engines and training code read such files: all frames of the first sound, channels averaged."""
    with av.open(BytesIO(data)) as file:
        frames = []
        for frame in file.decode(audio=0):
            values = frame.to_ndarray()
            values = values if frame.format.is_planar else values.reshape(-1, len(frame.layout.channels)).T
            scale = {"s16": 1 << 15, "s32": 1 << 31}.get(frame.format.name.removesuffix("p"), 1)
            frames.append((values / scale).astype(np.float32))
    return np.concatenate(frames, axis=1).mean(axis=0)


@pytest.mark.parametrize("kind", FILES)
def test_it_is_heard_as_pyav_decodes_it(kind):
    data = FILES[kind]
    expected = by_pyav(data)
    info = inspect_audio(data, LIMITS, ITEM)
    assert (info.format, info.sample_rate, info.channels) == (CODECS[kind][2], RATE, 2)
    assert info.num_samples == len(expected)
    decoded = decode(data, 0)
    assert decoded.dtype == np.float32
    assert np.allclose(decoded, expected, atol=1e-6)
    resampled = decode(data, 16_000)
    assert np.allclose(
        resampled[: len(resampled) - 1], soxr.resample(expected, RATE, 16_000, "HQ")[: len(resampled) - 1], atol=1e-6
    )


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "adts-aac"])
def test_it_begins_where_the_sound_does(kind):
    """An encoder's delay, which containers state, is not heard."""
    decoded, original = decode(FILES[kind], 0), STEREO.mean(axis=1)
    assert 0 <= len(decoded) - len(original) < 2048
    assert np.corrcoef(decoded[: len(original)], original)[0, 1] > 0.9


def test_every_format_is_made_here():
    assert {format for _, _, format in CODECS.values()} == set(CONTAINERS)


def test_the_sound_of_a_video_is_heard():
    data = av_sound(STEREO, RATE, "mp4-aac", pictures=30)
    assert inspect_audio(data, LIMITS, ITEM).format == "MP4"
    assert np.allclose(decode(data, 0), decode(FILES["mp4-aac"], 0), atol=1e-6)


def test_aac_behind_a_tag():
    assert inspect_audio(ID3 + FILES["adts-aac"], LIMITS, ITEM).format == "AAC"
    assert np.array_equal(decode(ID3 + FILES["adts-aac"]), decode(FILES["adts-aac"]))


@pytest.mark.parametrize("kind", FILES)
def test_its_length_is_bounded(kind):
    for limits in (MediaLimits(media_max_audio_s=0.5), MediaLimits(media_max_bytes=100)):
        for refuse in (
            lambda data, limits: inspect_audio(data, limits, ITEM),
            lambda data, limits: decode(data, 0, limits),
        ):
            with pytest.raises(PayloadTooLarge):
                refuse(FILES[kind], limits)


def test_a_bomb_stops_at_the_limit():
    """An hour of silence: neither its time nor its memory is spent, whatever the header says of its length."""
    data = av_sound(np.zeros(600 * 8_000), 8_000, "mkv-flac")
    limits = MediaLimits(media_max_audio_s=30)
    for bomb in (data, data.replace(b"\x44\x89\x88", b"\x44\x88\x88")):  # Matroska's Duration, made another element
        tracemalloc.start()
        with pytest.raises(PayloadTooLarge, match="--media-max-audio-s"):
            decode(bomb, 16_000, limits)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 16 << 20


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("m4a-aac", {"movflags": "frag_keyframe+delay_moov", "frag_duration": "100000"}),
        ("mp4-opus", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "100000"}),
        ("webm-opus", {"live": "1"}),
        ("webm-opus", {"cluster_time_limit": "100"}),
    ],
)
def test_streamed_files_are_heard_to_their_end(kind, options):
    """As browsers record them and HLS sends them: the header does not know how long they will be."""
    data = av_sound(STEREO, RATE, kind, **options)
    assert data != FILES[kind]
    assert abs(inspect_audio(data, LIMITS, ITEM).num_samples - RATE) < 2048
    assert np.corrcoef(decode(data, 0)[:RATE], decode(FILES[kind], 0)[:RATE])[0, 1] > 0.99


def test_aac_without_a_container_is_heard_to_its_last_whole_frame():
    data = FILES["adts-aac"]
    assert RATE * 0.4 < inspect_audio(data[: len(data) // 2], LIMITS, ITEM).num_samples < RATE * 0.6


@pytest.mark.parametrize("kind", ["m4a-aac", "mp4-opus", "mp4-mp3"])
def test_a_file_that_is_cut_off_is_refused(kind):
    data = av_sound(np.tile(STEREO, (3, 1)), RATE, kind, moov_size="20000")  # in front
    assert inspect_audio(data, LIMITS, ITEM).num_samples > 140_000
    for cut in (FILES[kind][: len(FILES[kind]) // 2], data[: len(data) // 2]):
        with pytest.raises(BadRequest, match="damaged or truncated"):
            inspect_audio(cut, LIMITS, ITEM)


def test_other_codecs_and_files_without_sound_are_named():
    silent = av_sound(None, kind="mp4-aac", pictures=3)
    with pytest.raises(UnsupportedMedia, match="holds no sound"):
        inspect_audio(silent, LIMITS, ITEM)
    with pytest.raises(UnsupportedMedia, match=r"codec is not served .*; send one of AAC, Apple Lossless"):
        inspect_audio(FILES["mkv-flac"].replace(b"A_FLAC", b"A_DTS\0"), LIMITS, ITEM)


def test_damage_anywhere_gives_a_refusal_or_a_sound_and_nothing_else():
    rng = random.Random(5)
    refused = 0
    kinds = list(FILES)
    for number in range(200):
        data = bytearray(FILES[kinds[number % len(kinds)]])
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(12, min(len(data), rng.choice((60, 400, 100_000))))] = rng.randrange(256)
        limits = MediaLimits(media_max_audio_s=2)
        try:
            inspect_audio(bytes(data), limits, ITEM)
            assert len(decode(bytes(data), 16_000, limits)) <= 2 * 16_000
        except (BadRequest, UnsupportedMedia, PayloadTooLarge):
            refused += 1
    assert refused > 20
