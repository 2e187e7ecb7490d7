"""Makes the right answers: transformers' own greedy ``generate`` on the same weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from triptych.contracts.errors import ConfigError
from triptych.models.registry import FAMILIES, family_of, load_checkpoint
from triptych.verify import decode
from triptych.verify.cases import Beeps, Film

MODULES = ("torch", "torchvision", "transformers")
_CONTEXT = 8
"""The number of prompt tokens with which an answer is decoded: a token's text may depend on its neighbours."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """One step of ``generate``."""

    text: str
    """The text of the token alone; special tokens have one, too."""
    end: int
    """The number of complete characters of the answer up to and including this token."""
    margin: float
    """The difference between its logit and that of the next best token."""
    runner_up: str
    """The text of the next best token."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A right answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    """The number of tokens, the end of sequence included."""
    ids: tuple[int, ...] = ()
    """The token ids, without the end of sequence."""
    tokens: tuple[Token, ...] = ()
    """All generated tokens, the end of sequence included."""


def _video_metadata(films: list[decode.Frames]) -> list[Any]:
    from transformers.video_utils import VideoMetadata

    return [VideoMetadata(total_num_frames=film.of, fps=film.fps, frames_indices=film.indices) for film in films]


class Reference:
    """Generates greedily with transformers from the checkpoint in ``folder``. Takes one question at a time.

    Making it reads only small files. It raises ConfigError if the folder is not a checkpoint, the model takes no media,
    or ``MODULES`` are not installed. The first use loads the weights, and raises ConfigError if that fails.
    """

    def __init__(self, folder: Path, dtype: str = "float32", device: str = "cpu") -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        self.checkpoint = load_checkpoint(str(folder))
        self.model_type = str(self.checkpoint.config.get("model_type"))
        self.takes = family_of(self.checkpoint).modalities
        """The kinds of media that the model takes."""
        if not self.takes:
            known = ", ".join(name for family in FAMILIES for name in family.model_types)
            raise ConfigError(f"{folder}: models of type {self.model_type} cannot be checked; known: {known}")
        if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                f"{', '.join(missing)} not installed: `make install` does, or this package's extra `verify`"
            )

    @property
    def version(self) -> str:
        """Returns the version of transformers."""
        return importlib.metadata.version("transformers")

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Returns (model, processor)."""
        import torch
        from transformers import AutoModelForMultimodalLM, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = AutoModelForMultimodalLM.from_pretrained(self.folder, dtype=getattr(torch, self.dtype))
            return model.eval().to(self.device), AutoProcessor.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"{self.folder} cannot be loaded on {self.device}: {reason}") from error

    def expect(self, messages: list[dict[str, Any]], media: list[Any], max_tokens: int) -> Expected:
        """Returns the right answer to ``messages``, in which the placeholders stand for ``media``, in order.

        The prompt is exactly what the chat template makes, as for the served model. Raises ConfigError.
        """
        import torch

        model, processor = self._parts
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self._inputs(processor, text, media)
        inputs = inputs.to(device=self.device, dtype=model.dtype)
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=max_tokens, return_dict_in_generate=True, output_scores=True, **settings
            )
        prompt = inputs["input_ids"][0].tolist()
        generated = output.sequences[0, len(prompt) :].tolist()
        scores = torch.cat(output.scores).float()  # [generated, vocabulary]
        return self._expected(prompt, generated, *scores.topk(2))

    def _inputs(self, processor: Any, text: str, media: list[Any]) -> Any:
        """Returns the model's inputs for a prompt and ``media``, which are ``cases.SentMedium``."""
        pictures = [medium for medium in media if isinstance(medium, Image.Image)]
        films = [decode.frames(medium.file, self.checkpoint) for medium in media if isinstance(medium, Film)]
        sounds = [decode.samples(medium.file) for medium in media if isinstance(medium, Beeps)]
        given: dict[str, Any] = {"images": pictures} if pictures else {}
        if films:
            given |= {"videos": [film.values for film in films], "video_metadata": _video_metadata(films)}
            given["do_sample_frames"] = False
        if sounds:
            given |= {"audio": [values for values, _ in sounds], "sampling_rate": sounds[0][1]}
        return processor(text=[text], return_tensors="pt", add_special_tokens=False, **given)

    def _expected(self, prompt: list[int], generated: list[int], scores: Any, best: Any) -> Expected:
        """Returns the answer. ``scores`` and ``best`` [generated, 2] hold the two best tokens of each step."""
        ends = self._parts[0].generation_config.eos_token_id
        stopped = generated[-1] in (ends if isinstance(ends, list) else [ends])
        ids = generated[:-1] if stopped else generated
        tokens = [
            Token(
                text=self._decode([token], special=True),
                end=len(self._answer(prompt, ids[: index + 1]).rstrip("\ufffd")),
                margin=(scores[index, 0] - scores[index, 1]).item(),
                runner_up=self._decode([other for other in best[index].tolist() if other != token][:1], special=True),
            )
            for index, token in enumerate(generated)
        ]
        return Expected(
            text=self._answer(prompt, ids),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(generated),
            ids=tuple(ids),
            tokens=tuple(tokens),
        )

    def _answer(self, prompt: list[int], ids: list[int]) -> str:
        """Returns the text of ``ids`` after the prompt."""
        context = prompt[-_CONTEXT:]
        before, both = self._decode(context), self._decode([*context, *ids])
        return both[len(before) :] if both.startswith(before) else self._decode(ids)

    def _decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        tokenizer = self._parts[1].tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))
