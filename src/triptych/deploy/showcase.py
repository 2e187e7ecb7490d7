"""Makes what ``triptych demo`` shows: the request, the answer, the time by stage, and examples to copy."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec

from triptych.config.serve import FrontendConfig, WorkerConfig
from triptych.contracts.spans import Span
from triptych.demo import MODELS
from triptych.deploy.client import Answer
from triptych.deploy.graph import FrontendNode, Graph, WorkerNode
from triptych.deploy.local import Deployment

MAX_TOKENS = 64

_STAGES = {
    "media_s": "fetch media",
    "tokenise_s": "tokenise",
    "preprocess_s": "preprocess",
    "queue_s": "queue",
    "encode_s": "encode",
    "prefill_s": "prefill",
    "decode_s": "decode",
    "total_s": "total",
}

_LABELS = {"image": "Picture:", "video": "Video:", "audio": "Sound:"}

_CURL = """\
curl {url}/v1/chat/completions -H 'content-type: application/json' {authorisation}-d @- <<END
{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": [
  {{"type": "{kind}", "{kind}": {{"url": "data:{media_type};base64,$(base64 -w0 {file})"}}}},
  {{"type": "text", "text": "{question}"}}]}}]}}
END"""

_PYTHON = """\
from base64 import b64encode
from openai import OpenAI

data = b64encode(open("{file}", "rb").read()).decode()
client = OpenAI(base_url="{url}/v1", api_key="{api_key}")
answer = client.chat.completions.create(
    model="{model}",
    temperature=0,
    messages=[{{"role": "user", "content": [
        {{"type": "{kind}", "{kind}": {{"url": f"data:{media_type};base64,{{data}}"}}}},
        {{"type": "text", "text": "{question}"}},
    ]}}],
)
print(answer.choices[0].message.content)"""


class Exhibit(msgspec.Struct, frozen=True, kw_only=True):
    """A picture, video or sound in a file, with a question about it and the right answer."""

    file: Path
    medium: str
    """The kind of medium, as content parts name it: image, video or audio."""
    media_type: str
    question: str
    expected: str

    @property
    def kind(self) -> str:
        """The type of the content part."""
        return f"{self.medium}_url"


def demo_graph(model: str = "demo", served_model_name: str | None = None) -> Graph:
    """Returns the graph of ``examples/e-pd.yaml`` for a demo model, without reading the example.

    For another ``model`` returns a graph of one worker, because its encoder might not work in a worker of its own.
    """
    frontend = FrontendNode(config=FrontendConfig(enable_multimodal=True))
    if model not in MODELS:
        config = WorkerConfig(model=model, name="epd", served_model_name=served_model_name)
        return Graph(workers=(WorkerNode(config=config),), frontend=frontend)
    encoder = WorkerConfig(model=model, name="enc", span=Span.E, engine="encoder", served_model_name=served_model_name)
    rest = WorkerConfig(model=model, name="pd", span=Span.PD, served_model_name=served_model_name)
    return Graph(workers=(WorkerNode(config=encoder), WorkerNode(config=rest)), frontend=frontend)


def request_body(model: str, exhibit: Exhibit) -> dict[str, object]:
    url = f"data:{exhibit.media_type};base64,{base64.b64encode(exhibit.file.read_bytes()).decode()}"
    content = [
        {"type": exhibit.kind, exhibit.kind: {"url": url}},
        {"type": "text", "text": exhibit.question},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def dialogue(exhibit: Exhibit, answer: Answer) -> str:
    return (
        f"\n{_LABELS[exhibit.medium]:<11}{exhibit.file}\nQuestion:  {exhibit.question}\n"
        f"Answer:    {answer.text.strip()}\nExpected:  {exhibit.expected}\n"
    )


def timing_table(answer: Answer) -> str:
    """Returns the milliseconds of each reported stage, one line each."""
    timing = answer.triptych.timing
    labels = _STAGES if "encode_s" in timing else {**_STAGES, "prefill_s": "encode + prefill"}
    rows = [(label, timing.get(key)) for key, label in labels.items()]
    lines = [f"  {label:<18}{1000 * value:>9.1f} ms" for label, value in rows if value is not None]
    plan = f" ({answer.triptych.plan})" if answer.triptych.plan else ""
    return "\n".join([f"Time by stage{plan}:", *lines]) if lines else "No timing was reported."


def examples(deployment: Deployment, exhibit: Exhibit) -> str:
    """Returns the same question for curl and for the ``openai`` package, to copy. Neither contains the API key."""
    fields = {
        "api_key": "YOUR KEY" if deployment.api_key else "none",
        "authorisation": "-H 'authorization: Bearer YOUR KEY' " if deployment.api_key else "",
        "url": deployment.url,
        "model": deployment.models[0],
        "file": exhibit.file,
        "kind": exhibit.kind,
        "media_type": exhibit.media_type,
        "question": exhibit.question,
    }
    curl, python = _CURL.format(**fields), _PYTHON.format(**fields)
    return f"\nThe same by curl:\n\n{curl}\n\nThe same in Python:\n\n{python}"
