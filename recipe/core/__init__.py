"""Console, paths, files, processes: what every other room uses. Standard library only, Python 3.8 on.

Imports no other room.
"""
