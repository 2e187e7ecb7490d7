"""A deployment on a real engine, started the way users start one, and what it is asked."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from support.reference import picture
from support.sse import parse


def parts(contents: list[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Image.Image]]:
    """A message's parts as the API and as transformers want them, and its pictures.

    ``contents`` holds texts and (seed, width, height) of pictures.
    """
    api: list[dict[str, Any]] = []
    local: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for one in contents:
        if isinstance(one, str):
            api.append({"type": "text", "text": one})
            local.append({"type": "text", "text": one})
            continue
        pictures.append(picture(*one))
        local.append({"type": "image"})
        api.append({"type": "image_url", "image_url": {"url": data_url(pictures[-1])}})
    return api, local, pictures


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Served:
    """A deployment in child processes, by the command that users type."""

    def __init__(self, graph: Path, model: Path | str, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "triptych", "up", str(graph), "--model", str(model), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("Serving "):
                return line.split(" at ")[1].split()[0]
        self.process.wait(timeout=30)
        self.process.stdout.close()
        raise AssertionError("the deployment did not start:\n" + "\n".join(self.lines))

    def ask(self, content: list[dict[str, Any]], max_tokens: int, *, stream: bool = False) -> tuple[str, list[str]]:
        """Greedy text of one message to the model ``tiny``, and the plan's calls where the frontend tells them."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": stream,
        }
        with httpx.Client(trust_env=False, timeout=120) as client:
            answer = client.post(f"{self.url}/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        text = parse(answer.content).text() if stream else answer.json()["choices"][0]["message"]["content"]
        return text, [step.split("@")[0] for step in answer.headers.get("x-triptych-plan", "").split()]

    def stop(self) -> int:
        self.process.terminate()
        output, _ = self.process.communicate(timeout=30)
        self.lines += output.splitlines()
        return self.process.returncode


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` has started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.extend(direct := children.get(todo.pop(), []))
        todo.extend(direct)
    return found
