"""Measure our trainer beside the unpatched upstream; ``--help`` says how."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: its names would be top-level modules

from recipe.bench import cli
from recipe.core import console

if __name__ == '__main__':
    console.run(cli.main)
