"""Fast modules for Mask2Former, and ``accelerate()``, which puts them into a built model.

Imports ``core``.
"""
