"""Flags are made from the configuration models, and read back into them."""

import argparse
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from triptych.cli.options import add_options, read_options
from triptych.config.media import MediaLimits
from triptych.config.serve import FrontendConfig, PlaneConfig, WorkerConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.engines.args import parse_engine_args
from triptych.engines.mock.args import MockArgs


def parse(model, *words):
    parser = argparse.ArgumentParser()
    add_options(parser, model)
    return read_options(parser.parse_args(list(words)), model)


@pytest.mark.parametrize("model", [FrontendConfig, PlaneConfig, MediaLimits])
def test_omitted_flags_keep_the_models_defaults(model):
    assert parse(model) == model()


@pytest.mark.parametrize("model", [FrontendConfig, PlaneConfig, MediaLimits, WorkerConfig])
def test_every_field_has_a_description(model):
    parser = argparse.ArgumentParser()
    add_options(parser, model)
    text = parser.format_help()
    for field in msgspec.structs.fields(model):
        assert f"--{field.name.replace('_', '-')}" in text
    undescribed = [a.option_strings for a in parser._actions if not a.help]
    assert not undescribed


def test_values_are_converted_to_the_fields_type():
    config = parse(
        WorkerConfig, "--model", "m", "--span", "pd", "--port", "7", "--drain-timeout-s", "1.5", "--name", "x"
    )
    assert config == WorkerConfig(model="m", span=Span.PD, port=7, drain_timeout_s=1.5, name="x")
    assert parse(FrontendConfig, "--enable-multimodal").enable_multimodal is True
    assert parse(FrontendConfig, "--no-enable-multimodal").enable_multimodal is False
    assert parse(FrontendConfig, "--api-key", "5").api_key == "5"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FrontendConfig, ("--port", "x")),
        (FrontendConfig, ("--port", "65536")),
        (FrontendConfig, ("--port", "-1")),
        (FrontendConfig, ("--max-choices", "0")),
        (FrontendConfig, ("--response-timeout-s", "0")),
        (PlaneConfig, ("--namespace", "a/b")),
        (MediaLimits, ("--media-max-bytes", "1.5")),
        (WorkerConfig, ("--model", "m", "--span", "ed")),
    ],
)
def test_a_bad_value_names_its_flag(model, words):
    with pytest.raises(ConfigError, match=f"{words[-2]} {words[-1]}: ") as caught:
        parse(model, *words)
    assert "\n" not in str(caught.value)


def test_help_texts_may_contain_percent_signs():
    class Odd(msgspec.Struct, frozen=True):
        """Odd."""

        share: Annotated[float, Meta(description="Between 0 % and 100 %.")] = 0.5

    parser = argparse.ArgumentParser()
    add_options(parser, Odd)
    assert "0 % and 100 %" in parser.format_help()


def test_unknown_fields_and_changes_are_refused():
    with pytest.raises(TypeError):
        FrontendConfig(prot=1)
    with pytest.raises(AttributeError):
        FrontendConfig().port = 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), MockArgs()),
        (("--itl-ms", "5"), MockArgs(itl_ms=5)),
        (("--itl-ms=5", "--block-size", "32"), MockArgs(itl_ms=5, block_size=32)),
    ],
)
def test_engine_flags(args, expected):
    assert parse_engine_args(args, MockArgs) == expected
