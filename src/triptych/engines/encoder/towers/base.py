"""Contains the parts that towers of several architectures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.engines.encoder.weights import Weights

Pixels = dict[str, Any]
"""The result of the model's own processor for one picture, video or sound: tensors by name."""
Run = Callable[[Sequence[Pixels]], list[Any]]
"""Encodes a batch of media. Returns the embedding [tokens, hidden] of each, on the model's device."""


@dataclass(frozen=True)
class Source:
    """Holds what a tower is built from."""

    config: Any
    """The checkpoint's config as transformers' own config class."""
    weights: Weights
    dtype: Any
    device: Any


Build = Callable[[Source], Run]
"""Builds the tower of one checkpoint. Raises ConfigError if its weights or its config do not fit."""


def load_module(
    model_class: Any, config: Any, source: Source, prefixes: Sequence[str], unused: tuple[str, ...] = ()
) -> Any:
    """Loads a transformers model with exactly the tensors under ``prefixes``.

    Raises ConfigError with the missing ones.
    """
    tensors = source.weights.under(prefixes)
    try:
        module, report = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=source.dtype, output_loading_info=True
        )
    except RuntimeError as error:  # its way to say that shapes do not fit
        raise ConfigError(f"weights under {prefixes[0]} do not fit the config: {str(error).splitlines()[0]}") from error
    _require_none(prefixes[0], (name for name in report["missing_keys"] if not name.startswith(unused)))
    return module.to(source.device).eval()


def load_projector(module: Any, source: Source) -> Any:
    prefixes = ("multi_modal_projector.", "model.multi_modal_projector.")
    try:
        report = module.load_state_dict(source.weights.under(prefixes), strict=False)
    except RuntimeError as error:
        raise ConfigError(f"weights under {prefixes[0]} do not fit the config: {error}".replace("\n", " ")) from error
    _require_none(prefixes[0], report.missing_keys)
    return module.to(source.device, source.dtype).eval()


def _require_none(prefix: str, missing: Iterable[str]) -> None:
    names = sorted(f"{prefix}{name}" for name in missing)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ConfigError(f"the checkpoint lacks weights of its encoder: {', '.join(names[:5])}{more}")
