"""What the answers are measured against: transformers' own ``generate`` on the same weights."""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.audio_model import AUDIO_TEXTS, audio_template
from support import checkpoint_llama4, checkpoint_llava, checkpoint_llava_next, checkpoint_llava_next_video
from support.qwen3_vl import qwen3_vl
from triptych.demo import MODEL_DIR
from triptych.verify import reference

SPREAD = 0.12
"""Standard deviation of the random weights: with the usual 0.02 greedy decoding repeats one token."""
LLAVA_SPREAD = 0.16
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}
VIDEO_PIXELS = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 12}
"""Of a frame."""


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next")
"""What ``make_checkpoint`` makes of models that see: values of ``model_type``.

Besides, it makes ``qwen2_audio``, ``qwen3_vl_moe`` and others that have modules of their own here."""
MEL_BINS = 32
"""Of the tiny Qwen2-Audio."""


def make_checkpoint(folder: Path, family: str = "qwen2_vl", **settings: Any) -> Path:
    """Save a ``family`` model of random weights that transformers and vLLM load alike, and return ``folder``.

    Tokenizer and chat template are the demo model's (LLaVA: with ``<image>`` as its placeholder). ``settings``
    replace values of the LLaVAs' config.
    """
    import torch

    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    torch.manual_seed(7)
    if family == "qwen2_audio":
        return _save_audio(folder)
    makers = {
        "llava": checkpoint_llava.model,
        "llava_next": checkpoint_llava_next.model,
        "llava_next_video": checkpoint_llava_next_video.model,
        "llama4": checkpoint_llama4.model,
    }
    if family.startswith("qwen3_vl"):
        model = qwen3_vl(folder, family)
    else:
        model = makers[family](folder, **settings) if family in makers else _qwen(folder, family)
    _spread(model, LLAVA_SPREAD if family in makers else SPREAD)
    model.save_pretrained(folder)
    if family.startswith("llava"):
        _rename(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")
    return folder


def _spread(model: Any, spread: float) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread)


def _qwen(folder: Path, family: str) -> Any:
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.num_hidden_layers, config.text_config.layer_types = 2, ["full_attention"] * 2
    config.vision_config.depth = 2
    _set_processors(folder, "Qwen2VLProcessor" if family == "qwen2_vl" else "Qwen2_5_VLProcessor")
    if family == "qwen2_vl":
        return Qwen2VLForConditionalGeneration(config)
    return Qwen2_5_VLForConditionalGeneration(_qwen2_5_config(config))


def _qwen2_5_config(older: Any) -> Any:
    """The same sizes, with one layer of windows (2 x 2 tokens) and one that sees all."""
    from transformers import Qwen2_5_VLConfig

    text = {**older.text_config.to_dict(), "model_type": "qwen2_5_vl_text"}
    vision = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "out_hidden_size": text["hidden_size"],
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "in_chans": 3,
        "tokens_per_second": 2,
    }
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        dtype="float32",
        **{name: getattr(older, name) for name in ids},
    )


def _set_processors(folder: Path, name: str) -> None:
    """As the demo's, which take more pixels; ``name`` is that of the class which puts them together."""
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text()) | {"processor_class": name}
    settings["image_processor"]["size"] = PIXELS
    settings["video_processor"]["size"] = VIDEO_PIXELS
    path.write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))


def _rename(path: Path, old: str, new: str) -> None:
    """Names that begin with ``old``: as they are on the hub, and in vLLM; transformers 5 saves others."""
    from safetensors.torch import load_file, save_file

    tensors = {
        f"{new}{name.removeprefix(old)}" if name.startswith(old) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


def _save_audio(folder: Path) -> Path:
    """Qwen2-Audio: a Whisper-like tower and a Qwen2, with the demo's tokenizer."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    tokenizer = _audio_processor(folder)
    audio = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **ends,
    }
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "num_mel_bins": MEL_BINS, **audio},
        text_config=text,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        dtype="float32",
    )
    model = Qwen2AudioForConditionalGeneration(config)
    _spread(model, SPREAD)
    model.save_pretrained(folder)
    _rename(folder / "model.safetensors", "language_model.model.model.", "language_model.model.")
    return folder


def _audio_processor(folder: Path) -> Any:
    """Replace the processors by Qwen2-Audio's; returns the tokenizer, which has got its tokens."""
    from transformers import AutoTokenizer, Qwen2AudioProcessor, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(AUDIO_TEXTS), special_tokens=True)
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, return_attention_mask=True)
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=audio_template()).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return tokenizer


def picture(seed: int, width: int = 140, height: int = 112) -> Image.Image:
    """Coloured rectangles, different for each seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randrange(width), rng.randrange(height)
        colour = tuple(rng.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + rng.randrange(8, 60), y + rng.randrange(8, 60)), fill=colour)
    return image


class Reference(reference.Reference):
    """That of ``triptych verify``, on one thread, in float32."""

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch

        torch.set_num_threads(1)
        return super()._parts

    def answer(self, messages: list[dict[str, Any]], pictures: list[Image.Image], max_tokens: int) -> list[int]:
        """Greedy token ids, the end of sequence left out."""
        return list(self.expect(messages, pictures, max_tokens).ids)

    def text(self, ids: list[int]) -> str:
        return str(self._parts[1].tokenizer.decode(ids, skip_special_tokens=True))


class AudioReference(Reference):
    """The same for models that hear; sounds are float32 [samples] at ``RATE_HZ``."""

    RATE_HZ = 16_000

    def __init__(self, folder: Path) -> None:
        self.folder, self.dtype, self.device = folder, "float32", "cpu"

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        torch.set_num_threads(1)
        model, report = Qwen2AudioForConditionalGeneration.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        assert report["missing_keys"] | report["unexpected_keys"] == set(), report
        return model.eval(), AutoProcessor.from_pretrained(self.folder)

    def _inputs(self, processor: Any, text: str, pictures: list[Any]) -> Any:
        settings = {"sampling_rate": self.RATE_HZ} if pictures else {}
        return processor(text=[text], audio=pictures or None, return_tensors="pt", add_special_tokens=False, **settings)


class VideoReference(Reference):
    """The same with videos among the pictures, as ``sampled`` gives them, or as frames alone.

    ``counts_time``: what follows a video stands behind all of its positions, those in time included. That is the rule
    of the model's paper (arXiv:2409.12191, 2.1), of transformers 4 and of vLLM, for Qwen2-VL and Qwen2.5-VL (whose
    positions in time go by seconds). transformers 5.19 passes over the video's height or width only, which is another
    place where a video has more positions in time than rows and columns. Qwen3-VL has one rule only.
    """

    def __init__(self, folder: Path, *, counts_time: bool = False) -> None:
        super().__init__(folder)
        self.counts_time = counts_time

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        model, processor = super()._parts
        if self.counts_time:
            model.model.get_rope_index = functools.partial(_positions, model.model)
        return model, processor

    def sampled(self, frames: Any, fps: float) -> tuple[Any, Any]:
        """Those of ``frames`` that the model's own video processor chooses at two a second, uint8 [frames, height,
        width, 3], and which they are.
        """
        import numpy
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(total_num_frames=len(frames), fps=fps)
        metadata.frames_indices = numpy.asarray(self._parts[1].video_processor.sample_frames(metadata, fps=2.0))
        return frames[metadata.frames_indices], metadata

    def _inputs(self, processor: Any, text: str, pictures: list[Any]) -> Any:
        images = [one for one in pictures if isinstance(one, Image.Image)]
        videos = [one for one in pictures if not isinstance(one, Image.Image)]
        told: dict[str, Any] = {"videos": [one[0] if isinstance(one, tuple) else one for one in videos]}
        told["do_sample_frames"] = False
        if all(isinstance(one, tuple) for one in videos):
            told["video_metadata"] = [metadata for _, metadata in videos]
        return processor(
            text=[text],
            images=images or None,
            return_tensors="pt",
            add_special_tokens=False,
            **(told if videos else {}),
        )


def _positions(
    model: Any,
    input_ids: Any,
    mm_token_type_ids: Any,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grid_ts: Any = None,
    **_: Any,
) -> tuple[Any, Any]:
    """In the place of ``get_rope_index``: positions [3, 1, tokens], and how far they go beyond the tokens [1, 1]."""
    import torch

    a_second = getattr(model.config.vision_config, "tokens_per_second", 1)
    seconds = iter(() if second_per_grid_ts is None else second_per_grid_ts)

    grids = {
        kind: iter(()) if grid is None else iter(grid) for kind, grid in ((1, image_grid_thw), (2, video_grid_thw))
    }
    parts: list[Any] = []
    start = 0
    for kind, group in itertools.groupby(mm_token_type_ids[0].tolist()):
        if kind == 0:
            part = torch.arange(sum(1 for _ in group)).expand(3, -1) + start
        else:
            merge = model.config.vision_config.spatial_merge_size
            a_step = a_second * next(seconds, 1) if kind == 2 else 1
            part = model.get_vision_position_ids(start, next(grids[kind]), 1, merge, a_step)
        parts.append(part)
        start = int(part.max()) + 1
    positions = torch.cat(parts, dim=1)  # [3, tokens]
    return positions[:, None], torch.tensor([[start - input_ids.shape[1]]])
