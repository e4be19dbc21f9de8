"""Exports trained models to other formats, and reads the models of other trainers.

Imports ``predict``, ``engine``, ``models``, ``data`` and ``core``.
"""
