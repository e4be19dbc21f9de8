"""Cityscapes: layout, prepare, verify, decoded cache, demo scenes.

Imports ``core``.
"""
