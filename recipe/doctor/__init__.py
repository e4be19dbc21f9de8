"""Checks of a machine before a training. Each gives findings: what was found, and how to fix it.

Imports ``engine``, ``data``, ``upstream`` and ``core``.
"""
