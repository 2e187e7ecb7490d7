"""Sizes in WAV headers that their files do not have, and files behind tags that are not their own."""

import struct

import pytest

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

import numpy as np
from test_media_audio import ITEM, LIMITS, SECOND, decode

from support.sound_files import encoded, tones, wav_says
from triptych.contracts.errors import BadRequest
from triptych.media.formats.audio import inspect_audio
from triptych.media.formats.wav import CutOff, with_sizes

ID3 = b"ID3\4\0\0\0\0\0\x64" + bytes(100)
PLACEHOLDERS = [0, 0x7FFF_FFFF, 0xFFFF_FFFF, 2_000_000_000, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF - 36, 1 << 30]
EXPECTED = decode(SECOND)


def says(data, whole, samples):
    changed = bytearray(wav_says(data, "size", samples))
    struct.pack_into("<I", changed, 4, whole)
    return bytes(changed)


@pytest.mark.parametrize("samples", PLACEHOLDERS)
@pytest.mark.parametrize("whole", [0, 36, len(SECOND) - 8, 0x7FFF_FFFF, 0xFFFF_FFFF, 2_000_000_036])
def test_placeholders_mean_to_the_end(samples, whole):
    streamed = says(SECOND, whole, samples)
    assert inspect_audio(streamed, LIMITS, ITEM).num_samples == 16_000
    assert np.array_equal(decode(streamed), EXPECTED)
    some = streamed[:20_001]  # the connection that it was streamed over ended early: nobody can tell
    assert inspect_audio(some, LIMITS, ITEM).num_samples == (20_001 - 44) // 2


@pytest.mark.parametrize("whole", [0, 100, 0xFFFF_FFFF])
def test_a_size_that_the_whole_does_not_have_either_means_to_the_end(whole):
    assert np.array_equal(decode(says(SECOND, whole, 500_000)), EXPECTED)


@pytest.mark.parametrize("lost", [1, 100, 31_000])
def test_a_file_that_was_whole_once_is_cut_off(lost):
    with pytest.raises(BadRequest, match="damaged or truncated"):
        inspect_audio(SECOND[:-lost], LIMITS, ITEM)
    with pytest.raises(CutOff):
        with_sizes(SECOND[:-lost])


@pytest.mark.parametrize("behind", [b"", b"\0", b"LIST\x04\0\0\0abcd", b"id3 \3\0\0\0abc\0", b"LIST\x04\0\0\0abcd" * 3])
def test_a_size_of_0_with_no_samples_behind_it_is_no_sound(behind):
    with pytest.raises(BadRequest, match="no samples"):
        inspect_audio(wav_says(SECOND, "size", 0)[:44] + behind, LIMITS, ITEM)


def test_what_states_its_size_is_left_alone():
    listed = SECOND + b"LIST\x04\0\0\0abcd"
    for data in (SECOND, listed, encoded(tones(0.1), subtype="FLOAT"), SECOND[:20], b"RIFF\0\0\0\0WAVE"):
        assert with_sizes(data) is data
    assert np.array_equal(decode(listed), EXPECTED)


@pytest.mark.parametrize(
    ("format", "subtype", "name"), [("FLAC", "PCM_16", "FLAC"), ("WAV", "PCM_16", "WAV"), ("OGG", "OPUS", "OGG")]
)
@pytest.mark.parametrize("before", [ID3, ID3 + bytes(300), ID3 * 3])
def test_files_behind_tags(format, subtype, name, before):
    data = encoded(tones(1.0), format=format, subtype=subtype)
    assert inspect_audio(before + data, LIMITS, ITEM) == (name, 16_000, 1, 16_000)
    assert np.array_equal(decode(before + data), decode(data))


def test_an_mp3_behind_tags_is_one():
    data = encoded(tones(1.0), format="MP3")
    assert inspect_audio(ID3 + data, LIMITS, ITEM).format == "MP3"
    assert np.array_equal(decode(ID3 + data), decode(data))
