"""Report the figures of a run folder or log; ``--help`` says how."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: its names would be top-level modules

from recipe.core import console
from recipe.report import metrics

if __name__ == '__main__':
    console.run(metrics.main)
