"""Converts pixels of any kind to RGB of 8 bits, with transparent parts laid over white."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

_WHITE = (255, 255, 255)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
_NOT_SERVED = {
    "F": "floating point",
    "I": "32-bit integers",
    "LAB": "CIE Lab",
    "HSV": "HSV",
    "La": "grey that is multiplied with its transparency",
}


class PixelsNotServed(Exception):
    """Raised for pixels whose colours cannot be known from the file. The text describes their kind."""


def to_rgb(image: ImageFile.ImageFile, depth: int) -> Image.Image:
    """Returns ``image``, which is loaded, as mode RGB. ``depth``: a PNG's bits a sample. Raises PixelsNotServed."""
    if image.mode in _NOT_SERVED:
        raise PixelsNotServed(_NOT_SERVED[image.mode])
    if image.mode.startswith("I;16"):
        return _from_16_bits(image)
    key = image.info.get("transparency")
    if isinstance(image, PngImagePlugin.PngImageFile) and isinstance(key, int | tuple):
        image.info["transparency"] = _in_8_bits(key, image.mode, depth)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    return over_white(layered, layered.getchannel("A"))


def over_white(picture: Image.Image, shown: Image.Image) -> Image.Image:
    """Lays ``picture`` (mode RGB) over white wherever ``shown`` (mode L, the same size) is not 0."""
    layered = Image.new("RGB", picture.size, _WHITE)
    layered.paste(picture, mask=shown)
    return layered


def _from_16_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Keeps the upper eight bits of grey of 16 bits: Pillow's own conversion clips instead of scaling."""
    little = image.mode != "I;16B"
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_BITS_PER_SAMPLE) != (16,):
        raise PixelsNotServed("grey of 12 bits")
    data = image.tobytes()
    high = Image.frombytes("L", image.size, data[1 if little else 0 :: 2])
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        high = ImageOps.invert(high)
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return high.convert("RGB")
    low = Image.frombytes("L", image.size, data[0 if little else 1 :: 2])
    shown = ImageChops.lighter(_differs(high, key >> 8), _differs(low, key & 0xFF))
    return over_white(high.convert("RGB"), shown)


def _differs(grey: Image.Image, value: int) -> Image.Image:
    """Returns 255 where ``grey`` is not ``value``, else 0."""
    return grey.point([0 if level == value else 255 for level in range(256)])


def _in_8_bits(key: int | tuple[int, ...], mode: str, depth: int) -> int | tuple[int, ...]:
    """Converts the transparent colour of a PNG from the file's bits a sample to Pillow's eight.

    Pillow has dropped the lower eight bits of colours of 16 bits: colours that differ in those alone count as equal.
    """
    if isinstance(key, tuple):
        return tuple(part >> 8 for part in key) if depth == 16 else key
    return key * 255 // ((1 << depth) - 1) if mode == "L" and depth < 8 else key
