# Slicer generates a configuration of the extension for others here; scripted modules need none.
