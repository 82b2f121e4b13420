"""The pictures of the modules, drawn in the headless host."""
