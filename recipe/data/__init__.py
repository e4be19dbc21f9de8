"""The Cityscapes data set: layout, prepare, verify, decoded cache, demo scenes.

Imports ``core``.
"""
