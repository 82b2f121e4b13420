"""The base of subject hierarchy plugins in Python. The host makes none; modules only name it."""

from __future__ import annotations

from typing import Any


class AbstractScriptedSubjectHierarchyPlugin:
    """A plugin, with the C++ object that it gives behaviour to."""

    def __init__(self, scriptedPlugin: Any):
        self.scriptedPlugin = scriptedPlugin
