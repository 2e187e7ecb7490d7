"""Counts exact answers of the demo models on unseen media: ``python -m training.evaluate [--about sound]``.

Either loads a checkpoint with transformers, or asks a running server over HTTP, which checks the whole path of a
request. The exit status is 1 if the share of exact answers is below ``--at-least``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.demo import MODELS
from triptych.demo.exams import EXAMS, Exam, Sample
from triptych.demo.seeds import EVALUATION_SEED_START

if TYPE_CHECKING:
    import httpx

MAX_TOKENS = 32  # the longest right answer has 22, with its end


def answers_locally(exam: Exam, model_dir: Path, samples: Sequence[Sample]) -> Iterator[str]:
    """Yields greedy answers of a checkpoint that transformers has loaded."""
    from training.checkpoint import load_vision_operators

    load_vision_operators()
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(model_dir)
    processor.tokenizer.padding_side = "left"
    architecture = transformers.AutoConfig.from_pretrained(model_dir).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(model_dir, dtype=torch.float32).eval()
    for start in range(0, len(samples), exam.at_once):
        part = samples[start : start + exam.at_once]
        inputs = processor(
            text=[_prompt(processor, exam, sample) for sample in part],
            padding=True,
            return_tensors="pt",
            **_media(exam, model_dir, part, processor),
        )
        tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        yield from processor.batch_decode(answers, skip_special_tokens=True)


def _prompt(processor: Any, exam: Exam, sample: Sample) -> str:
    content = [{"type": exam.medium}, {"type": "text", "text": sample.question}]
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _media(exam: Exam, model_dir: Path, samples: Sequence[Sample], processor: Any) -> dict[str, Any]:
    """Returns the media as arguments for the processor."""
    media = {exam.argument: [exam.read(model_dir, exam.file(sample)) for sample in samples]}
    rate = {"sampling_rate": processor.feature_extractor.sampling_rate} if exam.medium == "audio" else {}
    return media | rate


async def answers_served(
    exam: Exam, url: str, served_model: str, samples: Sequence[Sample], concurrency: int
) -> list[str]:
    """Returns the answers of an OpenAI-compatible server, asked with ``concurrency`` requests at a time."""
    import httpx

    gate = asyncio.Semaphore(concurrency)

    async def ask(client: httpx.AsyncClient, sample: Sample) -> str:
        async with gate:
            return await _ask_server(client, url, _body(exam, served_model, sample))

    async with httpx.AsyncClient(timeout=120) as client:
        return await asyncio.gather(*(ask(client, sample) for sample in samples))


def _body(exam: Exam, model: str, sample: Sample) -> dict[str, Any]:
    content = [exam.part(sample), {"type": "text", "text": sample.question}]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}


async def _ask_server(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> str:
    reply = await client.post(f"{url.rstrip('/')}/chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"] or "")


def tally(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns, for each kind of question, (exact answers, questions)."""
    table = {}
    for kind in dict.fromkeys(sample.kind for sample in samples):
        exact = [
            answer.strip() == sample.answer
            for sample, answer in zip(samples, answers, strict=True)
            if sample.kind == kind
        ]
        table[kind] = (sum(exact), len(exact))
    return table


def print_table(table: dict[str, tuple[int, int]]) -> float:
    """Prints the exact answers of each kind and in all. Returns the share in all."""
    exact = sum(right for right, _ in table.values())
    asked = sum(total for _, total in table.values())
    print(f"{'kind':<10}{'exact':>7}{'asked':>7}{'share':>9}")
    for kind, (right, total) in [*table.items(), ("all", (exact, asked))]:
        print(f"{kind:<10}{right:>7}{total:>7}{right / total:>9.1%}")
    return exact / asked


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--about", choices=tuple(EXAMS), default="picture", help="what to ask about (%(default)s)")
    add("--model", type=Path, help="checkpoint folder (default: the packaged one that knows what is asked about)")
    add("--count", type=int, default=1000, help="questions to ask (%(default)s)")
    add("--seed-start", type=int, default=EVALUATION_SEED_START, help="first seed (%(default)s)")
    add("--url", help="ask a server instead, for example http://localhost:8000/v1")
    add("--served-model", help="model name to ask the server for (default: demo, for sounds demo-audio)")
    add("--concurrency", type=int, default=16, help="requests at a time (%(default)s)")
    add("--at-least", type=float, default=0.98, help="share to reach (%(default)s)")
    add("--show-wrong", type=int, default=0, metavar="N", help="print the first N wrong answers")
    args = parser.parse_args(arguments)
    if args.count < 1 or args.concurrency < 1:
        parser.error("--count and --concurrency must be at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Asks, prints the table, and returns the exit status."""
    args = parse(arguments)
    exam = EXAMS[args.about]
    samples = exam.unseen(args.count, args.seed_start)
    if args.url:
        served = args.served_model or exam.model
        answers = asyncio.run(answers_served(exam, args.url, served, samples, args.concurrency))
    else:
        answers = list(answers_locally(exam, args.model or MODELS[exam.model], samples))
    wrong = [
        (sample, answer) for sample, answer in zip(samples, answers, strict=True) if answer.strip() != sample.answer
    ]
    for sample, answer in wrong[: args.show_wrong]:
        print(f"{sample.question!r}: {answer!r}, right is {sample.answer!r}")
    return 0 if print_table(tally(samples, answers)) >= args.at_least else 1


if __name__ == "__main__":
    raise SystemExit(main())
