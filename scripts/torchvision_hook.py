"""Lets ``import torchvision`` succeed beside a CPU build of torch if only torchvision's CUDA build is available.

The installer copies this module into an environment's site-packages, where a ``.pth`` line imports it at
every start of Python. The C extension of torchvision's CUDA build does not load without CUDA, and two operators are
then missing whose shapes torchvision registers on import. Declaring their schemas is enough, because nothing here
calls them. Until torchvision is first imported, this costs no more than an entry in ``sys.meta_path``. If the
extension loads, nothing is declared.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # not from typing: this module is imported at every start of Python
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

OPERATORS = ("torchvision::nms", "torchvision::qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareFirst:
    """Declares the operators just before torchvision is imported. It finds no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare()
        return None


def declare() -> None:
    """Declares the operators unless torchvision's extension has them, or they are declared already."""
    from contextlib import suppress

    try:
        import torch
    except ImportError:  # torchvision's own error says so
        return
    if _extension_loads(torch.ops.load_library):
        return
    for name in OPERATORS:
        with suppress(RuntimeError):  # declared already
            torch.library.define(name, SCHEMA)


def _extension_loads(load_library: Callable[[str], object]) -> bool:
    from contextlib import suppress
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("torchvision")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    for folder in folders:
        with suppress(OSError):
            load_library(f"{folder}/_C.so")
            return True
    return False


def install() -> None:
    if not any(isinstance(finder, DeclareFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeclareFirst())


install()
