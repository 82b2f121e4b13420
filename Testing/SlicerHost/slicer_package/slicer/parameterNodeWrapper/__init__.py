"""Typed access to a parameter node, and its connection with the widgets of a panel.

Written from Slicer's documentation of the feature; values are stored in the node as Slicer stores them, so a scene goes
back and forth between the two.
"""

from .annotations import *
from .guiConnectors import *
from .guiCreation import *
from .parameterPack import *
from .serializers import *
from .containers import *
from .types import *
from .wrapper import *
