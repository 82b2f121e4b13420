"""CTK's buttons, boxes and containers, with the behaviour that modules rely on."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .widget_api import as_color, implements, interface

Qt = QtCore.Qt


class Collapsible:
    """What ctkCollapsibleButton and ctkCollapsibleGroupBox share: children that hide when it collapses."""

    def setCollapsed(self: Any, collapsed: bool) -> None:
        """Hide or show the children; those that were hidden by the module stay hidden."""
        collapsed = bool(collapsed)
        if collapsed == self.collapsed:
            return
        self.store("collapsed", collapsed)
        if self.checked == collapsed:
            self.setChecked(not collapsed)
        children = [child for child in self.children() if isinstance(child, QtWidgets.QWidget)]
        if collapsed:
            self._hidden = [child for child in children if not child.isHidden()]
            for child in self._hidden:
                child.hide()
        else:
            for child in getattr(self, "_hidden", []):
                child.show()
            self._hidden = []
        self.setMaximumHeight(self._header_height() if collapsed else 16777215)
        self.updateGeometry()
        if hasattr(self, "contentsCollapsed"):
            self.contentsCollapsed.emit(collapsed)

    def _header_height(self: Any) -> int:
        return self.fontMetrics().height() + 8

    def childEvent(self: Any, event: QtCore.QChildEvent) -> None:
        """A widget that is added while collapsed shows when it expands."""
        if self.collapsed and event.added() and isinstance(event.child(), QtWidgets.QWidget):
            self._hidden = [*getattr(self, "_hidden", []), event.child()]
            event.child().hide()


@implements
class ctkCollapsibleButton(Collapsible, interface("ctkCollapsibleButton")):  # type: ignore[misc]
    """A header with an arrow, and contents below it that it hides."""

    def __init__(self, *arguments: Any):
        super().__init__()
        for argument in arguments:
            if isinstance(argument, str):
                self.setText(argument)
            elif argument is not None:
                self.setParent(argument)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda checked: self.setCollapsed(not checked))

    def sizeHint(self) -> QtCore.QSize:
        """The contents, or the header alone."""
        header = QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text) + 40, self._header_height())
        if self.collapsed or self.layout() is None:
            return header
        return self.layout().totalSizeHint().expandedTo(header)

    def minimumSizeHint(self) -> QtCore.QSize:
        """As the layout wants it."""
        return self.sizeHint() if self.layout() is None or self.collapsed else self.layout().totalMinimumSize()

    def hitButton(self, position: QtCore.QPoint) -> bool:
        """Only the header is the button."""
        return position.y() < self._header_height()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """The header with its arrow, and a thin frame around the contents."""
        painter = QtWidgets.QStylePainter(self)
        frame = self.rect.adjusted(0, self._header_height() // 2, -1, -1)
        if not self.collapsed:
            painter.setPen(self.palette.mid().color())
            painter.drawRect(frame)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._header_height())
        option.text = ("\N{BLACK RIGHT-POINTING SMALL TRIANGLE}  " if self.collapsed else
                       "\N{BLACK DOWN-POINTING SMALL TRIANGLE}  ") + self.text  # fmt: skip
        option.state |= QtWidgets.QStyle.StateFlag.State_Raised
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButton, option)


@implements
class ctkCollapsibleGroupBox(Collapsible, interface("ctkCollapsibleGroupBox")):  # type: ignore[misc]
    """A group box whose check box hides its contents."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(lambda checked: self.setCollapsed(not checked))

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """QGroupBox disables the children of an unchecked box, which is not wanted here either."""
        Collapsible.childEvent(self, event)


@implements
class ctkCheckablePushButton(interface("ctkCheckablePushButton")):  # type: ignore[misc]
    """A push button with a check box in it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.store("checkBoxControlsButton", True)
        self.store("checkBoxControlsButtonToggleState", True)
        self.store("checkBoxUserCheckable", True)

    def setCheckable(self, checkable: bool) -> None:
        """The check box shows whether the button is checkable."""
        if checkable == self.isCheckable():
            return
        super().setCheckable(checkable)
        if self.checkBoxControlsButtonToggleState:
            self.setCheckState(Qt.CheckState.Checked if checkable else Qt.CheckState.Unchecked)
            self.toggled.emit(checkable)

    checkable = QtCore.Property(bool, lambda self: self.isCheckable(), setCheckable)

    def setCheckState(self, state: int) -> None:
        """Check or clear the box."""
        if self.store("checkState", int(state)):
            self.checkBoxToggled.emit(int(state) == 2)
            if self.checkBoxControlsButtonToggleState:
                self.setCheckable(int(state) == 2)


@implements
class ctkComboBox(interface("ctkComboBox")):  # type: ignore[misc]
    """A combo box that shows a default text when nothing is chosen."""

    def setDefaultText(self, text: str) -> None:
        """Shown as a placeholder."""
        self.store("defaultText", text)
        self.setPlaceholderText(text)


@implements
class ctkCheckableComboBox(interface("ctkCheckableComboBox")):  # type: ignore[misc]
    """A combo box whose items have check boxes."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self.model().dataChanged.connect(self._on_data_changed)
        self._last = ()

    def insertItem(self, index: int, *arguments: Any) -> None:
        """New items start unchecked."""
        super().insertItem(index, *arguments)
        self.setItemData(index, Qt.CheckState.Unchecked, Qt.ItemDataRole.CheckStateRole)

    def addItem(self, *arguments: Any) -> None:
        """New items start unchecked."""
        super().addItem(*arguments)
        self.setItemData(self.count - 1, Qt.CheckState.Unchecked, Qt.ItemDataRole.CheckStateRole)

    def addItems(self, texts: list[str]) -> None:
        """New items start unchecked."""
        for text in texts:
            self.addItem(text)

    def checkState(self, index: QtCore.QModelIndex) -> int:
        """The state of one item."""
        return int(self.model().data(index, Qt.ItemDataRole.CheckStateRole) or 0)

    def setCheckState(self, index: QtCore.QModelIndex, state: int) -> None:
        """Check one item."""
        self.setItemData(index.row(), Qt.CheckState(state), Qt.ItemDataRole.CheckStateRole)

    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        """The indexes of the checked items."""
        indexes = [self.model().index(row, 0) for row in range(self.count)]
        return [index for index in indexes if self.checkState(index) == 2]

    def allChecked(self) -> bool:
        """Whether every item is checked."""
        return len(self.checkedIndexes()) == self.count

    def noneChecked(self) -> bool:
        """Whether no item is checked."""
        return not self.checkedIndexes()

    def checkableModel(self) -> QtCore.QAbstractItemModel:
        """The model with the check states."""
        return self.model()

    def _on_data_changed(self, *_: Any) -> None:
        rows = tuple(index.row() for index in self.checkedIndexes())
        if rows != self._last:
            self._last = rows
            self.checkedIndexesChanged.emit()


@implements
class ctkMenuButton(interface("ctkMenuButton")):  # type: ignore[misc]
    """A push button with a drop-down menu beside its text."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.setMenu(QtWidgets.QMenu(self))


@implements
class ctkSearchBox(interface("ctkSearchBox")):  # type: ignore[misc]
    """A line edit with a button that clears it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.setPlaceholderText("Search...")
        self.setClearButtonEnabled(True)


@implements
class ctkColorPickerButton(interface("ctkColorPickerButton", color=QtGui.QColor("black"), displayColorName=True)):  # type: ignore[misc]
    """A button that shows a colour and lets the user change it."""

    def setColor(self, color: QtGui.QColor) -> None:
        """Show another colour."""
        color = as_color(color)
        if self.store("color", color):
            self.colorNameChanged.emit(color.name())
        pixmap = QtGui.QPixmap(12, 12)
        pixmap.fill(color)
        self.setIcon(QtGui.QIcon(pixmap))
        if self.displayColorName:
            self.setText(color.name())

    def setColorName(self, name: str) -> None:
        """The colour by its name."""
        self.store("colorName", name)
        self.setColor(QtGui.QColor(name))


@implements
class ctkMessageBox(interface("ctkMessageBox")):  # type: ignore[misc]
    """A message box that can be told not to come back."""

    def setDontShowAgain(self, dont_show: bool) -> None:
        """The state of the check box, kept in the settings under dontShowAgainSettingsKey."""
        self.store("dontShowAgain", bool(dont_show))
        if self.dontShowAgainSettingsKey:
            QtCore.QSettings().setValue(self.dontShowAgainSettingsKey, bool(dont_show))


@implements
class ctkFlowLayout(QtWidgets.QVBoxLayout):
    """Items one below the other, where CTK lets them flow."""

    preferredExpandingDirections = 0
    alignItems = True
    orientation = 1


class ctkWidgetsUtils:
    """Static helpers."""

    @staticmethod
    def grabWidget(widget: QtWidgets.QWidget, *_: Any) -> QtGui.QImage:
        """A picture of a widget with its children."""
        return widget.grab().toImage()

    @staticmethod
    def setDropShadow(*_: Any) -> None:
        """No effect offscreen."""


class ctkErrorLogLevel:
    """Levels of the error log."""

    NoLevel, Unknown, Status, Trace, Debug, Info, Warning, Error, Critical, Fatal = (0, *(2**n for n in range(9)))


NAMES = {"ctkWidgetsUtils": ctkWidgetsUtils, "ctkErrorLogLevel": ctkErrorLogLevel}
