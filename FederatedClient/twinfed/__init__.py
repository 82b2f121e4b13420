"""TwinFed: federated learning between hospitals that exchange updates, never images. Never imports Slicer or Qt."""

__version__ = "0.1.0"
