"""A site of a federation: what it learns from, how it trains, and the process that does so beside Slicer."""
