"""Environments: which stack fits the machine, and its installation. Standard library only, Python 3.8 on.

Imports ``upstream`` and ``core``.
"""
