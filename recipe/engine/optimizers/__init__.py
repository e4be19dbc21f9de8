"""Optimizers and wrappers of optimizers that equip() or a precision option puts into a config."""
