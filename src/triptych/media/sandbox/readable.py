"""Finds the folders that a decoder may read: Python's library, installed packages and shared libraries."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

from triptych.media.sandbox.confinement import Folders

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


_SOUND = ("soundfile", "_soundfile", "_soundfile_data", "cffi", "_cffi_backend", "soxr")
MEDIA_PACKAGES = ("PIL.*", "numpy", "av.*", *_SOUND)
"""Packages that are loaded when the first medium of a kind comes: together they take longer than the start of a child
without them. Of a package with ``.*``, more modules are loaded later."""


@lru_cache(4)
def folders_for(packages: tuple[str, ...]) -> Folders:
    """Returns the folders that a child, which runs the same Python, has to read in order to import ``packages``.

    Packages outside of the usual folders for installed packages are added one by one, and nothing else beside them.
    """
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    installed.add(site.getusersitepackages())
    libraries = {f"{prefix}/lib" for prefix in (sys.prefix, sys.base_prefix)} | set(_SYSTEM) | _search_path()
    paths = python | installed | libraries
    listed = set()
    for name in packages:
        for place in _places(name):
            if not any(place.is_relative_to(folder) for folder in installed):
                paths.add(str(place))
                paths |= {str(place.parent / f"{place.stem}{suffix}") for suffix in (".libs", ".dylibs")}
                listed.add(str(place.parent))
    return Folders(tuple(sorted(path for path in paths if path)), tuple(sorted(listed)))


def _places(name: str) -> list[Path]:
    """Returns the folder of a package, or the file of a module; nothing if it is not installed."""
    try:
        spec = importlib.util.find_spec(name.removesuffix(".*"))
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.has_location and spec.origin else []


def _search_path() -> set[str]:
    """Returns the absolute folders of the dynamic linker's search path."""
    return {folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(folder)}
