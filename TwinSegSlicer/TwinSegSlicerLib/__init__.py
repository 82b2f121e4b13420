"""The inside of the TwinSegSlicer module: between Slicer's scene and windows and the library `twinseg`."""
