"""What test/lib.sh calls: launch.py check|environment|run full|performance OPTIONS."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: its names would be top-level modules

from recipe.core import console
from recipe.launch import stages

if __name__ == '__main__':
    console.run(stages.main)
