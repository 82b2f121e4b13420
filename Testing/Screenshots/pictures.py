"""Opens a module in the host, drives it as a user would, and takes pictures of it on the way."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "Docs/pictures"
SECONDS = 300

if TYPE_CHECKING:
    from SlicerHost.host import Host


class Pictures(ABC):
    """A module in the host's window. What draws its pictures is said by its kinds.

    Attributes:
        module: the file that is opened.
        prefix: what the pictures' names begin with.
        parts: the collapsible parts of its panel.
    """

    module: ClassVar[Path]
    prefix: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, host: Host) -> None:
        self.host = host
        host.window.resize(1400, 900)
        self.widget = host.open(self.module)
        self.ui = self.widget.ui

    @abstractmethod
    def draw(self, folder: Path) -> None:
        """Take all pictures; the folder is for files."""

    @property
    def panel_ui(self) -> Any:
        """What holds the parts: the module's panel, or a tab in it."""
        return self.ui

    def open_parts(self, *parts: str) -> None:
        """Only these parts of the panel are open."""
        for name in self.parts:
            getattr(self.panel_ui, f"{name}CollapsibleButton").collapsed = name not in parts
        self.host.process_events(0.3)

    def take(self, name: str, widget: Any = None, *, settle: float = 0.5) -> None:
        """Write a picture of the window, or of a widget in it, so many seconds from now."""
        path = PICTURES / f"{self.prefix}-{name}.png"
        self.host.process_events(settle)
        if widget is None:
            self.host.captureWindow(path)
        else:
            self.host.captureWidget(path, widget)
        print(path.relative_to(REPOSITORY))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until it holds; what is waited for may run at the lowest priority, so that this must not spin."""
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not done within {SECONDS} s")
            self.host.app.processEvents()
            time.sleep(0.01)
