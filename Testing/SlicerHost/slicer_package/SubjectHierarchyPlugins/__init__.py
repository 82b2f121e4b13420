"""The package that modules add their subject hierarchy plugins to. A plugin is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from .AbstractScriptedSubjectHierarchyPlugin import AbstractScriptedSubjectHierarchyPlugin


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"{__name__} has no {name}") from error
    globals()[name] = getattr(module, name, module)  # the class, where the file is named for it
    return globals()[name]


__all__ = ["AbstractScriptedSubjectHierarchyPlugin"]
