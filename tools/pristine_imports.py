"""Run a script with the unpatched upstreams: pristine_imports.py SCRIPT [ARGUMENTS]."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: its names would be top-level modules

from recipe.bench import pristine_imports
from recipe.core import console

if __name__ == '__main__':
    console.run(pristine_imports.main)
