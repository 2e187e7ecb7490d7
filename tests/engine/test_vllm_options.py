"""From a worker's options to vLLM's arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych.config.media import MediaLimits
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.vllm.source import choices, flag_names
from triptych.models.registry import load_checkpoint

CHECKPOINT = load_checkpoint(str(MODEL_DIR))


def arguments(*words: str, checkpoint=CHECKPOINT):
    from triptych.engines.vllm.options import engine_args

    options = EngineOptions(
        model_path=str(MODEL_DIR), model_name="demo", span=Span.EPD, media=MediaLimits(), args=words
    )
    return engine_args(options, checkpoint)


def test_defaults_suit_a_laptop() -> None:
    args = arguments()
    assert args.model == str(MODEL_DIR)
    assert args.enforce_eager is True
    assert args.kv_cache_memory_bytes <= 1 << 30
    assert args.dtype == "float32", "a float32 checkpoint must not be rounded to bfloat16"


def test_flags_of_the_user_win() -> None:
    args = arguments("--dtype", "bfloat16", "--max-model-len", "512", "--block-size=64", "--no-enforce-eager")
    assert (args.dtype, args.max_model_len, args.block_size, args.enforce_eager) == ("bfloat16", 512, 64, False)


def test_videos_are_normalised_by_their_own_values() -> None:
    """vLLM's shortcut beside the encoder takes the picture's for both."""
    usual = arguments().mm_device_do_normalize
    assert usual in (True, None)
    apart = replace(CHECKPOINT, video={**CHECKPOINT.video, "image_mean": [0.5, 0.5, 0.5]})
    assert arguments(checkpoint=apart).mm_device_do_normalize is False
    assert arguments("--mm-device-do-normalize", checkpoint=apart).mm_device_do_normalize is True
    vision = {"model_type": "clip_vision_model"}
    pictures_only = replace(apart, config={**CHECKPOINT.config, "model_type": "llava", "vision_config": vision})
    assert arguments(checkpoint=pictures_only).mm_device_do_normalize == usual


def test_frames_of_videos_are_not_sampled_again() -> None:
    given = {"do_sample_frames": False}
    assert arguments().mm_processor_kwargs == {"videos_kwargs": given}
    said = '{"max_pixels": 50176, "videos_kwargs": {"do_sample_frames": true, "size": {"longest_edge": 9}}}'
    assert arguments("--mm-processor-kwargs", said).mm_processor_kwargs == {
        "max_pixels": 50176,
        "videos_kwargs": {"size": {"longest_edge": 9}, **given},
    }
    pictures_only = replace(CHECKPOINT, config={**CHECKPOINT.config, "model_type": "llama4"})
    assert arguments(checkpoint=pictures_only).mm_processor_kwargs is None


def test_every_flag_of_vllms_parser_is_known_from_its_source() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    words = (word for action in parser._actions for word in action.option_strings if word.startswith("--"))
    known = flag_names() or frozenset()
    assert [word for word in words if word not in known and f"--{word.removeprefix('--no-')}" not in known] == []


def test_no_value_that_vllms_parser_takes_is_refused() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    taken = {word: action.choices for action in parser._actions for word in action.option_strings}
    known = choices()
    assert {"--dtype", "--kv-cache-dtype"} <= {*known}
    too_few = {flag: values for flag, values in known.items() if not {*(taken[flag] or ["any"])} - {None} <= {*values}}
    assert too_few == {}


def test_the_reason_for_a_wrong_combination_is_vllms_own() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from triptych.engines.vllm.failures import first_line

    with pytest.raises(ValueError, match="validation error") as refused:
        AsyncEngineArgs(model=str(MODEL_DIR), max_model_len=10**12).create_engine_config()
    reason = first_line(refused.value)
    assert reason.startswith("User-specified max_model_len (1000000000000) is greater")
    assert "\n" not in reason
    assert "pydantic" not in reason


def test_pydantics_report_of_a_flag_is_its_reason() -> None:
    with pytest.raises(ConfigError) as refused:
        arguments("--kv-transfer-config", "{bad")
    said = "vLLM engine flags: argument --kv-transfer-config: Invalid JSON: key must be a string at line 1 column 2"
    assert str(refused.value) == said


@pytest.mark.parametrize("words", [("--no-such-flag", "1"), ("--max-num-seqs", "many"), ("--max-num-seq", "1")])
def test_wrong_flags_are_named_in_one_line(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=words[0]) as refused:
        arguments(*words)
    assert "\n" not in str(refused.value)
