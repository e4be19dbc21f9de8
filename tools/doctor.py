"""Check the machine before a training; ``--help`` says how."""

import sys
from os.path import dirname, realpath

sys.path[0] = dirname(dirname(realpath(__file__)))  # not tools/: its names would be top-level modules

from recipe.core import refuse_hidden_stdlib  # noqa: F401  isort: skip  first of all
from recipe.core import console, left_out
from recipe.launch import examine

if __name__ == '__main__':
    left_out.leave_out_other_models()
    console.run(examine.main)
