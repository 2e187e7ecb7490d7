"""Sounds in the containers and codecs that FFmpeg reads, made in code."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np

CODECS = {
    # name -> (FFmpeg's muxer, its encoder, the format as we call it)
    "m4a-aac": ("ipod", "aac", "M4A"),
    "m4a-alac": ("ipod", "alac", "M4A"),
    "mp4-aac": ("mp4", "aac", "MP4"),
    "mp4-opus": ("mp4", "libopus", "MP4"),
    "mp4-mp3": ("mp4", "libmp3lame", "MP4"),
    "mov-aac": ("mov", "aac", "QuickTime"),
    "adts-aac": ("adts", "aac", "AAC"),
    "webm-opus": ("webm", "libopus", "WebM"),
    "webm-vorbis": ("webm", "vorbis", "WebM"),
    "mkv-opus": ("matroska", "libopus", "Matroska"),
    "mkv-flac": ("matroska", "flac", "Matroska"),
    "mkv-pcm": ("matroska", "pcm_f32le", "Matroska"),
    "mov-pcm": ("mov", "pcm_s24le", "QuickTime"),
}


def av_sound(
    samples: np.ndarray | None, rate: int = 48_000, kind: str = "m4a-aac", *, pictures: int = 0, **options: str
) -> bytes:
    """A file of ``samples``, [samples] or [samples, channels], beside so many frames of video."""
    muxer, codec, _ = CODECS[kind]
    out = BytesIO()
    with av.open(out, "w", format=muxer, options=options) as file:
        sound = None
        if samples is not None:
            layout = {1: "mono", 2: "stereo"}[np.atleast_2d(samples.T).shape[0]]
            sound = file.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        if pictures:
            _add_video(file, pictures)
        if sound is not None:
            _add_sound(file, sound, samples)
    return out.getvalue()


def _add_video(file: Any, pictures: int) -> None:
    stream = file.add_stream("libx264", rate=10, options={"x264-params": "log-level=none"})
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    for at in range(pictures):
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        frame.pts, frame.time_base = at, Fraction(1, 10)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def _add_sound(file: Any, stream: Any, samples: np.ndarray) -> None:
    planar = np.ascontiguousarray(np.atleast_2d(samples.T).astype(np.float32))  # [channels, samples]
    layout, rate = stream.layout.name, stream.rate
    whole = av.AudioFrame.from_ndarray(planar, format="fltp", layout=layout)
    whole.sample_rate, whole.pts = rate, 0
    fifo = av.AudioFifo()
    for frame in av.AudioResampler(stream.codec_context.format, layout, rate).resample(whole):
        fifo.write(frame)
    at = 0
    while frame := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
        frame.pts, frame.time_base = at, Fraction(1, rate)  # so that the encoder's delay comes before 0
        at += frame.samples
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
