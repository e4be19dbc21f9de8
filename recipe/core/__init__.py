"""Console, paths, files and processes, used by every other package. Standard library only, Python 3.8 on.

Imports no other package of the recipe.
"""
