"""Converts vLLM's exceptions to those of ``contracts.errors``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from triptych.contracts.errors import BadRequest, TriptychError, WorkerLost

log = logging.getLogger("triptych.vllm")

_PYDANTIC_END = re.compile(r" \[type=\w+, input_value=.*$")
_PYDANTIC_PREFIX = re.compile(r"^(Value error|Assertion failed), ")


@contextmanager
def in_our_terms(request_id: str) -> Iterator[None]:
    """Raises vLLM's error about a request as an error of ``contracts.errors``."""
    try:
        yield
    except VLLMClientError as error:
        raise BadRequest(first_line(error), param=getattr(error, "parameter", None)) from error
    except EngineDeadError:
        raise WorkerLost("the engine died before the answer was complete") from None
    except EngineGenerateError as error:
        log.exception("request %s failed", request_id)
        raise TriptychError("the engine failed on this request; the worker's log has the cause") from error
    except ValueError as error:
        raise BadRequest(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Returns the cause in one line: the innermost error of a chain that has a text."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyError):
        return f"KeyError: {error}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_of_settings(error: BaseException) -> bool:
    """Tells whether ``error`` refuses a setting by name, so that its reason is enough, without a traceback."""
    return isinstance(error, ValidationError | FileNotFoundError)


def plain(text: str) -> str:
    """Returns the message of vLLM's parser in one line. Of a pydantic report in it, only the reasons are kept."""
    head, found, report = text.partition("1 validation error for ")
    if not found:
        return " ".join(text.split())
    reasons = [line.strip() for line in report.splitlines()[1:] if not line.strip().startswith("For further")]
    return head + _PYDANTIC_PREFIX.sub("", _PYDANTIC_END.sub("", " ".join(reasons)))


def _of_validation(error: ValidationError) -> str:
    """Returns Pydantic's reasons, each after its flag, without the values of all other settings."""
    reasons = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        flag = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        reason = _PYDANTIC_PREFIX.sub("", " ".join(problem["msg"].split()))
        reasons.append(f"--{flag}: {reason}" if flag else reason)
    return "; ".join(dict.fromkeys(reasons))
