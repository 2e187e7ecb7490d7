"""Divides the seeds between training and evaluation, so that the two never share a sample."""

from __future__ import annotations

EVALUATION_SEED_START = 2**31
"""Seeds below are for training, seeds from here up for evaluation."""
SHOWN_SEED = EVALUATION_SEED_START + 4
"""The seed of ``triptych demo``: the first whose picture, film and clip all have something to show."""
