"""Options, checks, ranks, watchdog, restarts, progress: from a command line to a finished training.

Imports ``doctor``, ``report``, ``engine``, ``data``, ``upstream`` and ``core``.
"""
