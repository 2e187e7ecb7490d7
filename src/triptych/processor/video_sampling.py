"""Applies the server's own settings of how many frames of a video a model sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.contracts.errors import ConfigError
from triptych.models.base import Checkpoint


@dataclass(frozen=True)
class VideoSampling:
    """Replaces the checkpoint's settings of how many frames of a video the model sees. 0 leaves a setting unchanged."""

    num_frames: int = 0
    fps: float = 0.0

    def __post_init__(self) -> None:
        """Checks the settings. Raises ConfigError if both are given."""
        if self.num_frames and self.fps:
            raise ConfigError("--video-frames and --video-fps exclude each other: give one of them")

    def over(self, checkpoint: Checkpoint) -> Checkpoint:
        """Returns ``checkpoint`` with these settings in place of its own. The family's rule still chooses frames."""
        if not (self.num_frames or self.fps):
            return checkpoint
        stated = {"num_frames": self.num_frames or None, "fps": self.fps or None}
        return replace(checkpoint, video={**checkpoint.video, **stated})
