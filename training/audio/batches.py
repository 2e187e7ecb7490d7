"""Makes training batches of sounds: new clips with every question about each, as numpy arrays.

Letters below: C clips, F mel frames of the longest clip (a multiple of 4), T audio tokens of all clips together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.layout import Row, RowMaker, Show, Table, tabulate
from triptych.demo.audio.beeps import KINDS, ask
from triptych.demo.audio.clips import PITCHES, RATE_HZ, Clip, make_clip, render
from triptych.demo.seeds import EVALUATION_SEED_START

if TYPE_CHECKING:
    from transformers import Qwen2AudioProcessor

_TOKEN_S = 0.04  # four frames of 10 ms
_TOKEN_MIDDLE_S = 0.015
_TAIL = 1_600  # silence behind the longest clip, so that its end sounds as it does before 30 s are full


@dataclass
class Sounds:
    """Clips ready for the audio tower, with hints."""

    features: NDArray[np.float32]  # (C, mel bins, F)
    frames: NDArray[np.int64]  # (C,), of each clip
    pitch: NDArray[np.int64]  # (T,), 0 where there is silence
    beep: NDArray[np.int64]  # (T,), beeps begun until here


@dataclass
class Batch:
    table: Table
    sounds: Sounds


def token_count(frames: int) -> int:
    """Returns the number of audio tokens of ``frames`` mel frames."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


class BatchMaker:
    """Draws clips and questions from training seeds and lays them out as batches."""

    def __init__(self, processor: Qwen2AudioProcessor, rng: random.Random) -> None:
        self._rng = rng
        self._extractor = processor.feature_extractor
        self._rows = RowMaker(processor.tokenizer, rng)
        self._audio = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")

    def make(self, clips: int) -> Batch:
        """Returns a batch of ``clips`` rows."""
        drawn = [make_clip(random.Random(self._rng.randrange(EVALUATION_SEED_START))) for _ in range(clips)]
        sounds = self.sounds(drawn)
        shows = [self._show(token_count(int(frames))) for frames in sounds.frames]
        pairs = [[ask(clip, kind, self._rng) for kind in self._rng.sample(KINDS, len(KINDS))] for clip in drawn]
        return Batch(tabulate(self._rows.make(shows, pairs), self._rows.pad), sounds)

    def _show(self, tokens: int) -> Show:
        def show(row: Row, at: int) -> int:
            at = row.add_text(self._rows.ids("<|audio_bos|>"), at, 0)
            at = row.add_run(self._audio, at, tokens)
            return row.add_text(self._rows.ids("<|audio_eos|>"), at, 0)

        return show

    def sounds(self, clips: list[Clip]) -> Sounds:
        """Returns what the feature extractor makes of ``clips``, cut to their length."""
        waves = [render(clip).astype(np.float32) / 32_768 for clip in clips]
        frames = np.array([-(-len(wave) // self._extractor.hop_length) for wave in waves])
        samples = 640 * -(-(max(map(len, waves)) + _TAIL) // 640)  # of whole tokens
        padded = np.stack([np.pad(wave, (0, samples - len(wave))) for wave in waves])
        settings = {"sampling_rate": RATE_HZ, "padding": "longest", "return_tensors": "np"}
        features = self._extractor(list(padded), **settings)["input_features"]
        hints = [_hints(clip, token_count(int(count))) for clip, count in zip(clips, frames, strict=True)]
        return Sounds(features, frames, *(np.concatenate(parts) for parts in zip(*hints, strict=True)))


def _hints(clip: Clip, tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the pitch and the number of the beep in each token."""
    middles = np.arange(tokens) * _TOKEN_S + _TOKEN_MIDDLE_S
    pitch, beep = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
    for sound in clip.beeps:
        inside = (middles >= sound.start_s) & (middles < sound.start_s + sound.duration_s)
        pitch[inside] = list(PITCHES).index(sound.pitch) + 1
        beep[middles >= sound.start_s] += 1
    return pitch, beep
