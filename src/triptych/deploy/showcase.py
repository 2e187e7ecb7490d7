"""What ``triptych demo`` asks and shows: the request, the answer, the time by stage, and examples to copy."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec

from triptych.config.serve import FrontendConfig, WorkerConfig
from triptych.contracts.spans import Span
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

_CURL = """\
curl {url}/v1/chat/completions -H 'content-type: application/json' {authorisation}-d @- <<END
{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,$(base64 -w0 {picture})"}}}},
  {{"type": "text", "text": "{question}"}}]}}]}}
END"""

_PYTHON = """\
from base64 import b64encode
from openai import OpenAI

picture = b64encode(open("{picture}", "rb").read()).decode()
client = OpenAI(base_url="{url}/v1", api_key="{api_key}")
answer = client.chat.completions.create(
    model="{model}",
    temperature=0,
    messages=[{{"role": "user", "content": [
        {{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{picture}}"}}}},
        {{"type": "text", "text": "{question}"}},
    ]}}],
)
print(answer.choices[0].message.content)"""


class Exhibit(msgspec.Struct, frozen=True, kw_only=True):
    """A picture saved as PNG, a question about it and the right answer."""

    picture: Path
    question: str
    expected: str


def demo_graph(model: str | None = None, served_model_name: str | None = None) -> Graph:
    """What ``examples/e-pd.yaml`` says, for where the examples are not at hand; one worker for another ``model``,
    which need not be one whose encoder can be served apart.
    """
    frontend = FrontendNode(config=FrontendConfig(enable_multimodal=True))
    if model is not None:
        config = WorkerConfig(model=model, name="epd", served_model_name=served_model_name)
        return Graph(workers=(WorkerNode(config=config),), frontend=frontend)
    encoder = WorkerConfig(model="demo", name="enc", span=Span.E, engine="encoder", served_model_name=served_model_name)
    rest = WorkerConfig(model="demo", name="pd", span=Span.PD, served_model_name=served_model_name)
    return Graph(workers=(WorkerNode(config=encoder), WorkerNode(config=rest)), frontend=frontend)


def request_body(model: str, exhibit: Exhibit) -> dict[str, object]:
    url = f"data:image/png;base64,{base64.b64encode(exhibit.picture.read_bytes()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": exhibit.question},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def dialogue(exhibit: Exhibit, answer: Answer) -> str:
    return (
        f"\nPicture:   {exhibit.picture}\nQuestion:  {exhibit.question}\n"
        f"Answer:    {answer.text.strip()}\nExpected:  {exhibit.expected}\n"
    )


def timing_table(answer: Answer) -> str:
    """Milliseconds by stage, a line each; stages that were not reported are left out."""
    timing = answer.triptych.timing
    labels = _STAGES if "encode_s" in timing else {**_STAGES, "prefill_s": "encode + prefill"}
    rows = [(label, timing.get(key)) for key, label in labels.items()]
    lines = [f"  {label:<18}{1000 * value:>9.1f} ms" for label, value in rows if value is not None]
    plan = f" ({answer.triptych.plan})" if answer.triptych.plan else ""
    return "\n".join([f"Time by stage{plan}:", *lines]) if lines else "No timing was reported."


def examples(deployment: Deployment, exhibit: Exhibit) -> str:
    """The same question by curl and by the ``openai`` package, to copy; neither shows the API key itself."""
    fields = {
        "api_key": "YOUR KEY" if deployment.api_key else "none",
        "authorisation": "-H 'authorization: Bearer YOUR KEY' " if deployment.api_key else "",
        "url": deployment.url,
        "model": deployment.models[0],
        "picture": exhibit.picture,
        "question": exhibit.question,
    }
    curl, python = _CURL.format(**fields), _PYTHON.format(**fields)
    return f"\nThe same by curl:\n\n{curl}\n\nThe same in Python:\n\n{python}"
