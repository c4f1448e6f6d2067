"""The fleet's past: export, training data, import from other programs."""
