"""Lists all endpoints that generate text. A new one takes a folder beside ``chat`` and a line here."""

from __future__ import annotations

from typing import Any

from triptych.frontend.openai.chat.endpoint import ENDPOINT as CHAT
from triptych.frontend.openai.completions.endpoint import ENDPOINT as COMPLETIONS
from triptych.frontend.openai.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint[Any], ...] = (CHAT, COMPLETIONS)
