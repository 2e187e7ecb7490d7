"""Exact answers of the demo model on unseen pictures: ``python -m triptych.demo.evaluate``.

Either loads a checkpoint with transformers, or asks a running server through its
OpenAI-compatible address, which checks the whole way a request takes. Exit status 1
when the share of exact answers is below ``--at-least``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.demo import MODEL_DIR
from triptych.demo.shapes import EVALUATION_SEED_START, KINDS, Sample, make_sample

if TYPE_CHECKING:
    import httpx
    from PIL import Image

MAX_TOKENS = 32  # the longest right answer has 22


def unseen_samples(count: int, seed_start: int = EVALUATION_SEED_START) -> list[Sample]:
    """``count`` samples of seeds that training never draws, kinds in turn."""
    if seed_start < EVALUATION_SEED_START:
        raise ValueError(f"seeds below {EVALUATION_SEED_START} belong to training")
    return [make_sample(seed_start + i, KINDS[i % len(KINDS)]) for i in range(count)]


def answers_locally(model_dir: Path, samples: list[Sample], batch: int = 50) -> Iterator[str]:
    """Greedy answers of a checkpoint loaded with transformers, ``batch`` at a time."""
    from triptych.demo.checkpoint import load_vision_operators

    load_vision_operators()
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model_dir)
    processor.tokenizer.padding_side = "left"
    model = Qwen2VLForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": content(sample)}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for sample in part
        ]
        pictures = [sample.picture for sample in part]
        inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        yield from processor.batch_decode(answers, skip_special_tokens=True)


def content(sample: Sample) -> list[dict[str, object]]:
    """Message parts for transformers' chat template."""
    return [{"type": "image"}, {"type": "text", "text": sample.question}]


async def answers_served(url: str, served_model: str, samples: list[Sample], concurrency: int) -> list[str]:
    """Answers of an OpenAI-compatible server, ``concurrency`` requests at a time."""
    import httpx

    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(timeout=120) as client:
        return await asyncio.gather(*(_ask_server(client, gate, url, served_model, sample) for sample in samples))


async def _ask_server(client: httpx.AsyncClient, gate: asyncio.Semaphore, url: str, model: str, sample: Sample) -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(sample.picture)}},
        {"type": "text", "text": sample.question},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    async with gate:
        reply = await client.post(f"{url.rstrip('/')}/chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"] or "")


def data_url(picture: Image.Image) -> str:
    """A picture as a PNG data URL."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def tally(samples: list[Sample], answers: list[str]) -> dict[str, tuple[int, int]]:
    """Kind of question -> (exact answers, questions)."""
    table = {}
    for kind in KINDS:
        exact = [
            answer.strip() == sample.answer
            for sample, answer in zip(samples, answers, strict=True)
            if sample.kind == kind
        ]
        if exact:
            table[kind] = (sum(exact), len(exact))
    return table


def print_table(table: dict[str, tuple[int, int]]) -> float:
    """Print exact answers per kind and overall; returns the overall share."""
    exact = sum(right for right, _ in table.values())
    asked = sum(total for _, total in table.values())
    print(f"{'kind':<10}{'exact':>7}{'asked':>7}{'share':>9}")
    for kind, (right, total) in [*table.items(), ("all", (exact, asked))]:
        print(f"{kind:<10}{right:>7}{total:>7}{right / total:>9.1%}")
    return exact / asked


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m triptych.demo.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", type=Path, default=MODEL_DIR, help="checkpoint folder (the packaged one)")
    add("--count", type=int, default=1000, help="questions to ask (%(default)s)")
    add("--seed-start", type=int, default=EVALUATION_SEED_START, help="first seed (%(default)s)")
    add("--url", help="ask a server instead, for example http://localhost:8000/v1")
    add("--served-model", default="demo", help="model name to ask the server for (%(default)s)")
    add("--concurrency", type=int, default=16, help="requests at a time (%(default)s)")
    add("--at-least", type=float, default=0.98, help="share to reach (%(default)s)")
    add("--show-wrong", type=int, default=0, metavar="N", help="print the first N wrong answers")
    args = parser.parse_args(arguments)
    if args.count < 1 or args.concurrency < 1:
        parser.error("--count and --concurrency must be at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Ask, print the table, and say by the exit status whether it was enough."""
    args = parse(arguments)
    samples = unseen_samples(args.count, args.seed_start)
    if args.url:
        answers = asyncio.run(answers_served(args.url, args.served_model, samples, args.concurrency))
    else:
        answers = list(answers_locally(args.model, samples))
    wrong = [
        (sample, answer) for sample, answer in zip(samples, answers, strict=True) if answer.strip() != sample.answer
    ]
    for sample, answer in wrong[: args.show_wrong]:
        print(f"{sample.question!r}: {answer!r}, right is {sample.answer!r}")
    return 0 if print_table(tally(samples, answers)) >= args.at_least else 1


if __name__ == "__main__":
    raise SystemExit(main())
