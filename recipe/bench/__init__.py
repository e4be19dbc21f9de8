"""Compares the recipe's trainer with upstream's: step, operators, loader, validation, precision.

Imports everything but ``setup``.
"""
