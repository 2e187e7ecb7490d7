"""Makes a model for sounds without weights: the files that a processor and the mock engine need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from triptych.demo import MODEL_DIR

AUDIO_TEXTS = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")


def audio_template() -> str:
    """Returns the demo's chat template with sounds in the place of films."""
    template = (MODEL_DIR / "chat_template.jinja").read_text()
    film = "<|vision_start|><|video_pad|><|vision_end|>"
    return template.replace(film, "".join(AUDIO_TEXTS)).replace("'video", "'audio")


def audio_checkpoint(folder: Path) -> Path:
    """Returns a Qwen2-Audio without weights, with the demo's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in AUDIO_TEXTS])
    config = {
        "model_type": "qwen2_audio",
        "audio_token_index": tokenizer.token_to_id("<|AUDIO|>"),
        "text_config": {"model_type": "qwen2", "hidden_size": 64, "max_position_embeddings": 1024},
    }
    (folder / "config.json").write_text(json.dumps(config))
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16_000, "hop_length": 160}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    shutil.copy(MODEL_DIR / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(audio_template(), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
