"""A reader of ``.pt`` files that its file, which holds the folder to try, has taken over: see ``hostile_decoder``."""

from __future__ import annotations

import json
import os
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import hostile_decoder

from triptych.media.embeddings import pt_file


class Torch:
    """In the place of the real one, which takes seconds to load."""

    @staticmethod
    def load(data: BytesIO, **settings: Any) -> None:
        raise pt_file.Refused(json.dumps(hostile_decoder.tried(data.read().decode())))


pt_file._torch = lambda: Torch
os._exit(pt_file.main(int(sys.argv[1])))
