"""TwinSeg: brain tumour segmentation, synthetic patients and the patient twin. Never imports Slicer or Qt."""

__version__ = "0.1.0"
