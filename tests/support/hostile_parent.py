"""A server's process with decoders that are taken over: prints as JSON what each could do, by how it is confined.

Takes the folder to try on the command line, and a picture on standard input, or several media to decode in honest
decoders, too: JSON of kinds and data in base64. For other users, too: run it as one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import FILE_TYPES, Picture
from triptych.media.sandbox import process
from triptych.media.sandbox.pool import Sandbox

DECODER = str(Path(__file__).with_name("hostile_decoder.py"))
WAYS = ((), ("no-namespaces",), ("no-landlock", "no-namespaces"), ("unconfined",))
FIELDS: dict[str, dict[str, Any]] = {"video": {"frame_indices": (0, 5)}, "audio": {"decode_rate": 16_000}}


async def taken_over(folder: str, data: bytes, way: tuple[str, ...]) -> dict[str, Any]:
    process.COMMAND = (DECODER, "hostile", *way)
    sandbox = Sandbox(MediaLimits(media_decode_workers=1))
    try:
        await sandbox.decode(Picture(content_hash=folder, data=data), "item")
    except BadRequest as error:
        return {**json.loads(error.message), "confinement": str(sandbox.confinement)}
    finally:
        await sandbox.close()
    raise AssertionError("it was not taken over")


async def honest(media: dict[str, bytes], way: tuple[str, ...]) -> list[int]:
    """Sizes of what was decoded."""
    process.COMMAND = (DECODER, *way)
    sandbox = Sandbox(MediaLimits(media_decode_workers=1))
    try:
        sizes = []
        for kind, data in media.items():
            medium = FILE_TYPES[kind](content_hash="", data=data, **FIELDS.get(kind, {}))
            size = (await sandbox.decode(medium, "item")).size
            sizes.append(size[0] * size[1] if isinstance(size, tuple) else size)
        return sizes
    finally:
        await sandbox.close()


async def main() -> None:
    media = {kind: base64.b64decode(data) for kind, data in json.load(sys.stdin).items()}
    out: dict[str, Any] = {}
    for way in WAYS:
        out[" ".join(way) or "as it is"] = {
            **await taken_over(sys.argv[1], media["image"], way),
            "decoded": await honest(media, way) if way != ("unconfined",) and len(media) > 1 else [],
        }
    sys.stdout.write(json.dumps(out))


if __name__ == "__main__":
    asyncio.run(main())
