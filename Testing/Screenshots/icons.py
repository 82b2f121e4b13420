"""The modules' icons and the sample's thumbnail."""

from __future__ import annotations

from pathlib import Path

from Screenshots.pictures import REPOSITORY

ICONS = REPOSITORY / "TwinSegSlicer/Resources/Icons"


def draw_icons() -> None:
    """The modules' icons, 128 pixels, and the extension's, which is the first one's."""
    federation = REPOSITORY / "FederatedClient/Resources/Icons/FederatedClient.svg"
    draw_icon(ICONS / "TwinSegSlicer.svg", ICONS / "TwinSegSlicer.png", REPOSITORY / "TwinSegSlicer.png")
    draw_icon(federation, federation.with_suffix(".png"))


def draw_icon(drawing: Path, *pictures: Path) -> None:
    """Paint an SVG file into PNG files."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(128, 128, QImage.Format.Format_ARGB32)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    QSvgRenderer(str(drawing)).render(painter)
    painter.end()
    for path in pictures:
        image.save(str(path))


def draw_thumbnail() -> None:
    """The sample's picture in the Sample Data module: FLAIR and T1 with contrast, where the tumour is largest."""
    import numpy as np
    from PIL import Image

    from TwinSegSlicerLib.SampleDataSource import THUMBNAIL, makePatient

    patient = makePatient()
    z = int(np.argmax((patient.labels.array > 0).sum(axis=(0, 1))))
    halves = []
    for sequence in ("flair", "t1ce"):
        array = patient.images[sequence].array[14:-14, 14:-14, z].T[::-1, ::-1]
        halves.append(np.clip(array / np.percentile(array, 99.8), 0, 1) * 255)
    Image.fromarray(np.hstack(halves).astype(np.uint8)).save(THUMBNAIL, optimize=True)
