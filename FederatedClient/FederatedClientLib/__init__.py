"""The inside of the FederatedClient module: may import slicer, qt and ctk; twinfed does not know it."""
