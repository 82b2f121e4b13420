"""Slicer's import name of the base of subject hierarchy plugins."""

from SubjectHierarchyPlugins import AbstractScriptedSubjectHierarchyPlugin

__all__ = ["AbstractScriptedSubjectHierarchyPlugin"]
