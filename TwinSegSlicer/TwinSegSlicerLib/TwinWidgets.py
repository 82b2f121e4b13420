"""What the parts of the twin's tab do with their widgets alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt


def offer(button: Any, toolTip: str, reason: str) -> None:
    """Enable a button, unless there is a reason not to, which its tool tip then tells."""
    button.enabled = not reason
    button.toolTip = reason or toolTip


def tell(label: Any, text: str) -> None:
    """Show a text in a label, which is hidden where there is none."""
    label.text = text
    label.setVisible(bool(text))


def fillRow(table: Any, row: int, texts: Sequence[str], toolTips: Sequence[str] = ()) -> None:
    """Write the cells of a table's row; each says its whole text, and what it is, when the mouse rests on it."""
    for column, text in enumerate(texts):
        item = qt.QTableWidgetItem(text)
        toolTip = toolTips[column] if toolTips else ""
        item.setToolTip(f"{text}: {toolTip}" if toolTip else text)
        table.setItem(row, column, item)
