"""What tools/setup.sh runs; ``--help`` lists the options."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: its names would be top-level modules

from recipe.core import console
from recipe.setup import cli

if __name__ == '__main__':
    console.run(cli.main)
