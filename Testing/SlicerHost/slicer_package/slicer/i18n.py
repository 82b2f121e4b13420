"""Translation of user-visible strings: ``from slicer.i18n import tr as _``."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path

PLACEHOLDER = re.compile(r"(?<!\{)\{([^{}]+)\}(?!\})")


def translate(context: str, text: str) -> str:
    """``text`` in the language of the application."""
    import slicer

    return slicer.app.translate(context, text) if hasattr(slicer, "app") else text


@cache
def getContext(sourceFile: str) -> str:
    """The context of a source file: ``File``, or ``Package.File`` where an ``__init__.py`` lies beside it."""
    path = Path(sourceFile)
    name = path.stem if path.suffix == ".py" else path.name
    return f"{path.parent.name}.{name}" if (path.parent / "__init__.py").is_file() else name


def tr(text: str) -> str:
    """``text`` translated, in the context of the file that calls. A translation with other placeholders is not used."""
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None
    translated = translate(getContext(caller.f_code.co_filename if caller is not None else ""), text)
    return translated if set(PLACEHOLDER.findall(translated)) == set(PLACEHOLDER.findall(text)) else text
