"""The parts of the demonstration behind `make demo`, each shown by the commands that a user types."""
