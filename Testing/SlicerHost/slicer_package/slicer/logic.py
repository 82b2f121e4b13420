"""The C++ logic classes of Slicer's modules, all in one place."""

import slicer as _slicer

globals().update({name: value for name, value in vars(_slicer).items() if name.endswith("Logic")})
