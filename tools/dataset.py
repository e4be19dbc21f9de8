"""Describe a data set of your own in a small file, and check it; ``--help`` says how."""

import sys
from os.path import dirname, realpath

sys.path[0] = dirname(dirname(realpath(__file__)))  # not tools/: its names would be top-level modules

from recipe.core import refuse_hidden_stdlib  # noqa: F401  isort: skip  first of all
from recipe.core import console
from recipe.data.sets import cli

if __name__ == '__main__':
    console.run(cli.main)
