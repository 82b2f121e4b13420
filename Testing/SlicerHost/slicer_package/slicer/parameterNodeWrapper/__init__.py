"""Typed access to a parameter node, and its connection with the widgets of a panel.

Written from Slicer's documentation of the feature; values are stored in the node as Slicer stores them, so a scene goes
back and forth between the two.
"""

from .annotations import *  # noqa: F403
from .containers import *  # noqa: F403
from .guiConnectors import *  # noqa: F403
from .guiCreation import *  # noqa: F403
from .parameterPack import *  # noqa: F403
from .serializers import *  # noqa: F403
from .types import *  # noqa: F403
from .unions import *  # noqa: F403
from .wrapper import *  # noqa: F403
