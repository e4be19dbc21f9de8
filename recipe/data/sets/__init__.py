"""Data sets that a small file, dataset.json, describes: guess the file, check a set against it, draw samples of it.

``file`` and ``pairs`` run on a bare Python 3.8: the launchers' first check reads the file.
"""
