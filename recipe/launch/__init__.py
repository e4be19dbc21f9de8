"""The launcher: options, checks, ranks, watchdog, restarts and progress.

Imports ``doctor``, ``report``, ``engine``, ``data``, ``upstream`` and ``core``.
"""
