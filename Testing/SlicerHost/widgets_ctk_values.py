"""CTK's sliders, spin boxes and range widgets: a number, or two, within limits."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtWidgets

from .widget_api import implements, interface

Qt = QtCore.Qt
SLIDER_STEPS = 1000  # resolution of the QSlider that shows a floating-point value


def pixel_position(value: float, minimum: float, maximum: float) -> int:
    """Where a value lies on a QSlider of SLIDER_STEPS steps; 0 where a limit is infinite."""
    span = maximum - minimum
    return round(SLIDER_STEPS * (value - minimum) / span) if 0 < span < float("inf") else 0


class Bounded:
    """``minimum`` and ``maximum``; setting one past the other moves the other along."""

    def setMinimum(self: Any, minimum: float) -> None:
        """The lower limit."""
        self.setRange(minimum, max(minimum, self.maximum))

    def setMaximum(self: Any, maximum: float) -> None:
        """The upper limit."""
        self.setRange(min(maximum, self.minimum), maximum)

    def setRange(self: Any, minimum: float, maximum: float) -> None:
        """Both limits; what was set before is moved between them."""
        self.store("minimum", float(minimum))
        self.store("maximum", max(float(minimum), float(maximum)))
        if hasattr(self, "rangeChanged"):
            self.rangeChanged.emit(self.minimum, self.maximum)
        self._move_between_limits()

    def setDecimals(self: Any, decimals: int) -> None:
        """Digits after the point, in what is shown."""
        self.store("decimals", int(decimals))
        self._show()

    def setSingleStep(self: Any, step: float) -> None:
        """How far an arrow key goes."""
        self.store("singleStep", float(step))
        self._show()

    def _move_between_limits(self: Any) -> None:
        """Bring what is set between the limits; a number and a range do it each in their way."""
        raise NotImplementedError(type(self).__name__)

    def _show(self: Any) -> None:
        """Bring the parts that the user sees in line with what is set."""


class BoundedNumber(Bounded):
    """``value`` within the limits."""

    def setValue(self: Any, value: float) -> None:
        """The value, moved between the limits."""
        self.store("value", min(max(float(value), self.minimum), self.maximum))
        self._show()

    def _move_between_limits(self: Any) -> None:
        self.setValue(self.value)


class SliderPart:
    """The QSlider in a composite widget, kept in line with its value."""

    def _make_slider(self: Any) -> QtWidgets.QSlider:
        slider = QtWidgets.QSlider(Qt.Orientation.Horizontal, self)
        slider.setRange(0, SLIDER_STEPS)
        slider.sliderMoved.connect(
            lambda position: self.setValue(self.minimum + (self.maximum - self.minimum) * position / SLIDER_STEPS)
        )
        return slider


class SpinBoxPart:
    """The QDoubleSpinBox in a composite widget, kept in line with it without echo."""

    def _make_spin_box(self: Any, setter: Any) -> QtWidgets.QDoubleSpinBox:
        spin_box = QtWidgets.QDoubleSpinBox(self)
        spin_box.setKeyboardTracking(False)
        spin_box.valueChanged.connect(setter)
        return spin_box

    def _show_in(self: Any, spin_box: QtWidgets.QDoubleSpinBox, low: float, high: float, value: float) -> None:
        was_blocked = spin_box.blockSignals(True)
        spin_box.setDecimals(self.decimals)
        spin_box.setRange(low, high)
        spin_box.setSingleStep(self.singleStep)
        spin_box.setPrefix(self.prefix)
        spin_box.setSuffix(self.suffix)
        spin_box.setValue(value)
        spin_box.blockSignals(was_blocked)

    def setPrefix(self: Any, prefix: str) -> None:
        """Text before the number."""
        self.store("prefix", str(prefix))
        self._show()

    def setSuffix(self: Any, suffix: str) -> None:
        """Text after the number, such as a unit."""
        self.store("suffix", str(suffix))
        self._show()


NUMBER_DEFAULTS = {
    "minimum": 0.0,
    "maximum": 99.99,
    "singleStep": 1.0,
    "pageStep": 10.0,
    "decimals": 2,
    "tracking": True,
}


@implements
class ctkDoubleSpinBox(SpinBoxPart, BoundedNumber, interface("ctkDoubleSpinBox", **NUMBER_DEFAULTS, frame=True)):  # type: ignore[misc]
    """A spin box whose number of decimals can change."""

    def __init__(self, parent: QtWidgets.QWidget | None = None, *_: Any):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._spin_box = self._make_spin_box(lambda value: self.setValue(value))
        self._spin_box.editingFinished.connect(self.editingFinished)
        layout.addWidget(self._spin_box)
        self._show()

    def spinBox(self) -> QtWidgets.QDoubleSpinBox:
        """The spin box inside."""
        return self._spin_box

    def text(self) -> str:
        return self._spin_box.text

    def stepUp(self) -> None:
        """One step up."""
        self.setValue(self.value + self.singleStep)

    def stepDown(self) -> None:
        """One step down."""
        self.setValue(self.value - self.singleStep)

    def _show(self) -> None:
        if "_spin_box" in self.__dict__:
            self._show_in(self._spin_box, self.minimum, self.maximum, self.value)


SLIDER_DEFAULTS = {**NUMBER_DEFAULTS, "maximum": 99.0}


@implements
class ctkDoubleSlider(SliderPart, BoundedNumber, interface("ctkDoubleSlider", **SLIDER_DEFAULTS, orientation=1)):  # type: ignore[misc]
    """A slider over floating-point numbers."""

    def __init__(self, *arguments: Any):
        parent = next((argument for argument in arguments if isinstance(argument, QtWidgets.QWidget)), None)
        super().__init__(parent)
        self._slider = self._make_slider()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)

    def _show(self) -> None:
        if "_slider" in self.__dict__:
            self._slider.setValue(pixel_position(self.value, self.minimum, self.maximum))


SLIDER_WIDGET = interface("ctkSliderWidget", **SLIDER_DEFAULTS, spinBoxVisible=True)


@implements
class ctkSliderWidget(SliderPart, SpinBoxPart, BoundedNumber, SLIDER_WIDGET):  # type: ignore[misc,valid-type]
    """A slider with a spin box beside it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider = self._make_slider()
        self._spin_box = self._make_spin_box(lambda value: self.setValue(value))
        layout.addWidget(self._slider)
        layout.addWidget(self._spin_box)
        self._show()

    def spinBox(self) -> QtWidgets.QDoubleSpinBox:
        """The spin box beside the slider."""
        return self._spin_box

    def slider(self) -> QtWidgets.QSlider:
        """The slider."""
        return self._slider

    def setSpinBoxVisible(self, visible: bool) -> None:
        """Show or hide the spin box."""
        self.store("spinBoxVisible", bool(visible))
        self._spin_box.setVisible(visible)

    def setValue(self, value: float) -> None:
        """The value; ``valueIsChanging`` comes first, as while the user drags."""
        if value != self.value:
            self.valueIsChanging.emit(float(value))
        super().setValue(value)

    def _show(self) -> None:
        if "_spin_box" in self.__dict__:
            self._show_in(self._spin_box, self.minimum, self.maximum, self.value)
            self._slider.setValue(pixel_position(self.value, self.minimum, self.maximum))


class BoundedPair(Bounded):
    """``minimumValue`` and ``maximumValue`` within the limits."""

    def _move_between_limits(self: Any) -> None:
        self.setValues(self.minimumValue, self.maximumValue)

    def setMinimumValue(self: Any, value: float) -> None:
        """The lower value, at most the upper one."""
        self.setValues(min(float(value), self.maximumValue), self.maximumValue)

    def setMaximumValue(self: Any, value: float) -> None:
        """The upper value, at least the lower one."""
        self.setValues(self.minimumValue, max(float(value), self.minimumValue))

    def setValues(self: Any, low: float, high: float) -> None:
        """Both values, moved between the limits; ``valuesChanged`` is sent once."""
        low, high = sorted(min(max(float(value), self.minimum), self.maximum) for value in (low, high))
        values = self.__dict__.setdefault("_values", {})
        old = (self.minimumValue, self.maximumValue)
        values["minimumValue"], values["maximumValue"] = low, high
        if low != old[0]:
            self.minimumValueChanged.emit(low)
        if high != old[1]:
            self.maximumValueChanged.emit(high)
        if (low, high) != old:
            self.valuesChanged.emit(low, high)
        self._show()

    def range(self: Any) -> tuple[float, float]:
        """The limits."""
        return self.minimum, self.maximum

    def values(self: Any) -> tuple[float, float]:
        """The values."""
        return self.minimumValue, self.maximumValue


PAIR_DEFAULTS = {**SLIDER_DEFAULTS, "minimumValue": 0.0, "maximumValue": 99.0}


@implements
class ctkRangeWidget(SpinBoxPart, BoundedPair, interface("ctkRangeWidget", **PAIR_DEFAULTS)):  # type: ignore[misc]
    """Two spin boxes for the ends of a range, with a bar between them."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._low = self._make_spin_box(lambda value: self.setMinimumValue(value))
        self._high = self._make_spin_box(lambda value: self.setMaximumValue(value))
        bar = QtWidgets.QFrame(self)
        bar.setFrameShape(QtWidgets.QFrame.Shape.HLine)
        for part, stretch in ((self._low, 0), (bar, 1), (self._high, 0)):
            layout.addWidget(part, stretch)
        self._show()

    def minimumSpinBox(self) -> QtWidgets.QDoubleSpinBox:
        """The spin box of the lower value."""
        return self._low

    def maximumSpinBox(self) -> QtWidgets.QDoubleSpinBox:
        """The spin box of the upper value."""
        return self._high

    def _show(self) -> None:
        if "_high" in self.__dict__:
            self._show_in(self._low, self.minimum, self.maximum, self.minimumValue)
            self._show_in(self._high, self.minimum, self.maximum, self.maximumValue)


@implements
class ctkDoubleRangeSlider(BoundedPair, interface("ctkDoubleRangeSlider", **PAIR_DEFAULTS)):  # type: ignore[misc]
    """A slider with two handles."""


@implements
class ctkRangeSlider(BoundedPair, interface("ctkRangeSlider", minimumValue=0, maximumValue=99)):  # type: ignore[misc]
    """A slider with two handles, over integers."""


@implements
class ctkCoordinatesWidget(interface("ctkCoordinatesWidget", dimension=3, coordinates="0,0,0", decimals=3)):  # type: ignore[misc]
    """A vector, shown and set as text: "1,2,3"."""

    def setCoordinates(self, *values: Any) -> None:
        """As text, or as numbers."""
        text = values[0] if len(values) == 1 else ",".join(str(value) for value in values)
        text = text if isinstance(text, str) else ",".join(str(value) for value in text)
        if text != self.coordinates:
            self.__dict__.setdefault("_values", {})["coordinates"] = text
            numbers = ([float(number) for number in text.split(",")] + [0.0] * 4)[:4]
            self.coordinatesChanged.emit(*numbers)
