"""SlicerHost: 3D Slicer's scripted modules on real MRML, without Slicer's application.

``start()`` makes ``import qt, ctk, slicer`` work as in Slicer, over slicer-core and PySide6. See README.md.
"""

from .host import Host, start

__all__ = ["Host", "start"]
