"""Environments: which stack fits the machine, and installing it. Standard library only, Python 3.8 on.

Imports ``upstream`` and ``core``.
"""
