"""Defines what the header of a picture's file states."""

from __future__ import annotations

from typing import NamedTuple


class HeaderError(Exception):
    """Raised for a header that is damaged or cut off."""


class Header(NamedTuple):
    width: int
    """Pixels as stored, before the orientation is applied."""
    height: int
    orientation: int
    """EXIF's 1 to 8; 1 is upright, 5 to 8 swap width and height."""
