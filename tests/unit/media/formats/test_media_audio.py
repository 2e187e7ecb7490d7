"""Sounds: recognised, measured, bounded and decoded the same whatever file they came in."""

import base64
import random
import subprocess
import sys
import time
import tracemalloc

import pytest

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

import numpy as np
import soxr

from support.sound_files import encoded, flac_says, tones, wav_says, with_vbri, without_length
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, UnsupportedMedia
from triptych.contracts.media import Sound
from triptych.media import loader
from triptych.media.formats import audio as module
from triptych.media.formats import av_sound
from triptych.media.formats.audio import decode_audio, inspect_audio, resampled_length
from triptych.media.formats.inspect import inspect
from triptych.media.loader import MediaLoader, MediaReference

LIMITS = MediaLimits()
ITEM = "messages[0].content[0].audio_url"
WRITTEN = [
    ("WAV", "PCM_16", "WAV"),
    ("WAV", "PCM_U8", "WAV"),
    ("WAV", "FLOAT", "WAV"),
    ("WAVEX", "PCM_24", "WAV"),
    ("FLAC", "PCM_16", "FLAC"),
    ("MP3", None, "MP3"),
    ("OGG", "VORBIS", "OGG"),
    ("OGG", "OPUS", "OGG"),
]
SECOND = encoded(tones(1.0))


def medium(data, rate=16_000):
    return Sound(content_hash="x", data=data, decode_rate=rate)


def decode(data, rate=16_000, limits=LIMITS):
    return decode_audio(medium(data, rate), limits, ITEM)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize(("format", "subtype", "name"), WRITTEN)
def test_facts_are_those_of_the_sound(format, subtype, name, rate):
    for seconds in (0.1, 1.234):
        samples = tones(seconds, rate)
        both = np.stack([samples, samples], axis=1)
        data = encoded(both, rate, format, subtype)
        assert inspect_audio(data, LIMITS, ITEM) == (name, rate, 2, len(samples))
        assert len(decode(data, 0)) == len(samples)


def test_facts_become_fields_of_the_medium():
    facts = inspect("audio", SECOND, LIMITS, ITEM)
    assert Sound(content_hash="x", **facts).num_samples == 16_000
    assert facts == {"format": "WAV", "num_samples": 16_000, "sample_rate": 16_000}


def test_samples_are_those_of_the_file():
    samples = tones(0.5).astype(np.float32)
    decoded = decode(encoded(samples, format="WAV", subtype="FLOAT"))
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, samples)


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(channels):
    each = np.stack([tones(0.2, seed=seed) for seed in range(channels)], axis=1).astype(np.float32)
    assert np.allclose(decode(encoded(each, subtype="FLOAT")), each.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("count", [1, 3, 1000, 300_001])
def test_resampling_in_blocks_is_resampling_at_once(rate, count):
    samples = tones(count / rate, rate).astype(np.float32)
    decoded = decode(encoded(samples, rate, subtype="FLOAT"))
    expected = soxr.resample(samples, rate, 16_000, quality="HQ")
    assert len(decoded) == resampled_length(count, rate, 16_000) == -(-count * 16_000 // rate)
    kept = min(len(expected), len(decoded))
    assert np.array_equal(decoded[:kept], expected[:kept])
    assert not decoded[kept:].any()


def test_one_sound_is_heard_alike_from_every_format():
    """Lossy formats within their loss: what is decoded goes along with the original, from start to end."""
    samples = tones(2.0)
    for format, subtype, _ in WRITTEN:
        decoded = decode(encoded(samples, 16_000, format, subtype))
        assert np.corrcoef(decoded, samples)[0, 1] > 0.95, (format, subtype)


def test_files_that_do_not_state_their_length_are_counted():
    samples = tones(2.0)
    flac = flac_says(encoded(samples, format="FLAC"), 0)
    piped = wav_says(encoded(samples), "size", 0xFFFF_FFFF)
    for data, expected in [(flac, len(samples)), (piped, len(samples))]:
        assert inspect_audio(data, LIMITS, ITEM).num_samples == len(decode(data, 0)) == expected
    mp3 = without_length(encoded(np.concatenate([np.zeros(60_000), tones(2.0)]), format="MP3"))
    assert inspect_audio(mp3, LIMITS, ITEM).num_samples == len(decode(mp3, 0)) > 60_000 + len(samples)


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_files_put_together_are_heard_to_the_end(format, subtype):
    """A chained OGG (RFC 3533, 4), and MP3s written one behind the other."""
    sounds = [tones(1.0, seed=seed) for seed in range(3)]
    data = b"".join(encoded(sound, 16_000, format, subtype) for sound in sounds)
    assert inspect_audio(data, LIMITS, ITEM).num_samples == 48_000
    assert np.corrcoef(decode(data, 16_000), np.concatenate(sounds))[0, 1] > 0.95
    assert len(decode(data, 8_000)) == 24_000
    for refuse in (lambda limits: inspect_audio(data, limits, ITEM), lambda limits: decode(data, limits=limits)):
        with pytest.raises(PayloadTooLarge, match="--media-max-audio-s"):
            refuse(MediaLimits(media_max_audio_s=2.9))


def test_files_put_together_that_are_refused():
    one = encoded(tones(0.1), format="OGG")
    cases = [
        (one + encoded(tones(0.1, 8_000), 8_000, "OGG"), UnsupportedMedia, "changes its sample rate"),
        (one + encoded(np.zeros((1600, 2)), 16_000, "OGG"), UnsupportedMedia, "its channels"),
        (one + one[:-1], BadRequest, "damaged or truncated"),
        (one + one[:20], BadRequest, "damaged or truncated"),
        (one * 1001, PayloadTooLarge, "more than 1,000 parts"),
        (encoded(np.zeros(10), format="MP3") * 1001, PayloadTooLarge, "more than 1,000 parts"),
    ]
    for data, error, words in cases:
        for refuse in (lambda data: inspect_audio(data, LIMITS, ITEM), decode):
            with pytest.raises(error, match=words) as caught:
                refuse(data)
            assert caught.value.param == ITEM


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_holds_what_its_header_states(rate, channels):
    whole = encoded(np.stack([tones(2.0, rate)] * channels, axis=1), rate, "MP3")
    frames = int.from_bytes(whole[(at := whole.index(b"Xing") + 8) : at + 4])
    only_bytes = whole[: at - 1] + b"\2" + len(whole).to_bytes(4) + whole[at + 4 :]
    for stated in (whole, with_vbri(whole, frames), b"ID3\4\0\0\0\0\0\x64" + bytes(100) + whole):
        assert inspect_audio(stated, LIMITS, ITEM).num_samples >= 2 * rate
        for refuse in (lambda data: inspect_audio(data, LIMITS, ITEM), decode):
            with pytest.raises(BadRequest, match="damaged or truncated"):
                refuse(stated[: len(stated) * 8 // 10])
    assert inspect_audio(only_bytes, LIMITS, ITEM).num_samples >= 2 * rate
    with pytest.raises(BadRequest, match="damaged or truncated"):
        inspect_audio(only_bytes[: len(whole) // 2], LIMITS, ITEM)


def test_an_mp3_that_states_no_length_is_heard_to_its_last_frame():
    """Whatever the first one's rate of bits lets expect, and though the last one may be cut off."""
    samples = tones(2.0)
    mp3 = without_length(encoded(samples, format="MP3"))
    assert len(samples) <= inspect_audio(mp3, LIMITS, ITEM).num_samples == len(decode(mp3, 0)) < len(samples) + 2_000
    half = inspect_audio(mp3[: len(mp3) // 2], LIMITS, ITEM).num_samples
    assert len(samples) * 0.4 < half < len(samples) * 0.6


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", BadRequest, "empty"),
        (b"\0" * 400, UnsupportedMedia, "not a sound"),
        (b"just some words", UnsupportedMedia, "WAV, FLAC, MP3, OGG"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", BadRequest, "damaged"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", UnsupportedMedia, "an image"),
        (b"\x89PNG\r\n\x1a\n", UnsupportedMedia, "an image"),
        (b"\xff\xf1\x50\x80", BadRequest, "damaged"),
        (b"#!AMR\n" + bytes(100), UnsupportedMedia, "AMR"),
        (b"ID3", BadRequest, "damaged"),
        (b"fLaC" + bytes(100), BadRequest, "damaged"),
        (b"OggS" + bytes(100), BadRequest, "damaged"),
        (SECOND[:40], BadRequest, "damaged"),
        (SECOND[: len(SECOND) // 2], BadRequest, "damaged"),
        (encoded(np.zeros(0)), BadRequest, "no samples"),
        (SECOND[:12] + b"abcd\0\0\0\0" * 100_000, BadRequest, "damaged"),
        (wav_says(SECOND, "rate", 1), UnsupportedMedia, "samples a second"),
        (wav_says(SECOND, "rate", 1_000_000_000), UnsupportedMedia, "samples a second"),
        (wav_says(SECOND, "rate", 0), BadRequest, "damaged"),
        (wav_says(SECOND, "channels", 0), BadRequest, "damaged"),
        (wav_says(SECOND, "channels", 64), UnsupportedMedia, "channels"),
        (encoded(tones(0.5), format="OGG")[:1500], BadRequest, "damaged"),
    ],
    ids=lambda value: f"{len(value)}-bytes" if isinstance(value, bytes) else "",
)
def test_what_is_refused_by_its_header(data, error, words):
    for refuse in (lambda: inspect_audio(data, LIMITS, ITEM), lambda: decode(data)):
        with pytest.raises(error, match=words) as caught:
            refuse()
        assert caught.value.param == ITEM


@pytest.mark.parametrize(
    "data",
    [
        encoded(tones(2.0), format="FLAC")[:20_000],
        flac_says(encoded(tones(1.0), format="FLAC"), 16_001),
        encoded(np.array([0.5, np.nan, 0.5]), subtype="FLOAT"),
        encoded(np.array([0.5, np.inf, 0.5]), subtype="FLOAT"),
        encoded(np.array([0.5, 1e30, 0.5]), subtype="FLOAT"),
    ],
    ids=["cut-off", "says-more", "nan", "infinite", "overflows"],
)
def test_what_is_refused_when_it_is_decoded(data):
    with pytest.raises(BadRequest, match="damaged"):
        decode(data)


def test_limits():
    with pytest.raises(PayloadTooLarge, match="--media-max-bytes"):
        inspect_audio(SECOND, MediaLimits(media_max_bytes=len(SECOND) - 1), ITEM)
    for data in (SECOND, encoded(tones(1.0), format="MP3"), flac_says(encoded(tones(1.0), format="FLAC"), 0)):
        for limits in (MediaLimits(media_max_audio_s=0.99), MediaLimits(media_max_audio_s=0.001)):
            with pytest.raises(PayloadTooLarge, match="--media-max-audio-s") as caught:
                inspect_audio(data, limits, ITEM)
            assert caught.value.param == ITEM
            with pytest.raises(PayloadTooLarge):
                decode(data, limits=limits)
        assert inspect_audio(data, MediaLimits(media_max_audio_s=1.0), ITEM).num_samples == 16_000


def test_what_many_channels_of_a_high_rate_take_is_bounded():
    data = encoded(np.zeros((96_000, 8)), 192_000)
    with pytest.raises(PayloadTooLarge, match="8 channels of 192,000 Hz"):
        inspect_audio(data, MediaLimits(media_max_audio_s=1.0), ITEM)
    assert inspect_audio(data, MediaLimits(media_max_audio_s=4.0), ITEM).num_samples == 96_000


@pytest.mark.parametrize("hidden", [False, True], ids=["stated", "unstated"])
def test_a_bomb_stops_at_the_limit(hidden):
    """An hour of silence in some KiB: neither its time nor its memory is spent."""
    data = encoded(np.zeros(3600 * 16_000, np.int16), format="FLAC")
    assert len(data) < 500_000
    data = flac_says(data, 0) if hidden else data
    tracemalloc.start()
    begun = time.thread_time()
    with pytest.raises(PayloadTooLarge, match="--media-max-audio-s"):
        decode(data, limits=MediaLimits(media_max_audio_s=60))
    spent_s = time.thread_time() - begun
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 << 20
    assert spent_s < 5


def test_damage_anywhere_gives_a_refusal_or_a_sound_and_nothing_else():
    rng = random.Random(5)
    whole = [encoded(tones(0.3), format=format, subtype=subtype) for format, subtype, _ in WRITTEN]
    refused = 0
    for number in range(400):
        data = bytearray(whole[number % len(whole)])
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(4, min(len(data), rng.choice((60, 400, 100_000))))] = rng.randrange(256)
        limits = MediaLimits(media_max_audio_s=2)
        try:
            inspect_audio(bytes(data), limits, ITEM)
            assert len(decode(bytes(data), limits=limits)) <= 2 * 16_000
        except (BadRequest, UnsupportedMedia, PayloadTooLarge):
            refused += 1
    assert refused > 50


async def test_the_rate_that_the_model_hears_is_a_part_of_the_name():
    url = f"data:;base64,{base64.b64encode(SECOND).decode()}"

    async def load(*settings):
        async with MediaLoader(LIMITS) as source:
            return await source.load([MediaReference("audio", url, ITEM, one) for one in settings])

    plain, low, high, same = await load(
        (), (("decode_rate", 8_000),), (("decode_rate", 16_000),), (("decode_rate", 16_000),)
    )
    assert [one.decode_rate for one in (plain, low, high)] == [0, 8_000, 16_000]
    assert len({one.content_hash for one in (plain, low, high)}) == 3
    assert same == high
    assert (high.format, high.num_samples, high.sample_rate) == ("WAV", 16_000, 16_000)


async def test_a_frontend_inspects_sounds_in_another_process(monkeypatch):
    monkeypatch.setattr(loader, "inspect", None)
    async with MediaLoader(LIMITS) as source:
        url = f"data:;base64,{base64.b64encode(SECOND).decode()}"
        medium = await source.load_one(MediaReference("audio", url, ITEM))
        assert len(source.sandbox.pids) == 1
        result = medium
    assert result.num_samples == 16_000


def test_a_rate_that_nobody_hears_is_refused():
    with pytest.raises(BadRequest, match="resampled"):
        decode(SECOND, 4_000_000_000)


def test_what_is_not_installed_is_named(monkeypatch):
    for name in ("soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(TriptychError, match=rf"needs {name}.*extra `audio`") as caught:
            decode(SECOND, 8_000)
        assert caught.value.status == 500
        monkeypatch.undo()


def test_nothing_heavy_is_imported_before_the_first_sound():
    code = "import sys, triptych.cli.main, triptych.media.decoder, triptych.media.loader, triptych.frontend.app\n"
    heavy = "print([name for name in ('numpy', 'soundfile', 'soxr', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_names_what_it_reads():
    by_libsndfile = {name for _, _, name in WRITTEN}
    assert by_libsndfile | set(av_sound.CONTAINERS) == set(module.SUPPORTED_SOUNDS)
