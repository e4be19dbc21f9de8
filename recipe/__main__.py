"""Start one of the recipe's own processes: ``python recipe NAME ARGUMENTS``.

The launcher, the doctor and set-up call it. Users have the commands in tools/ and test/.
"""

import importlib
import sys
from pathlib import Path

# Python puts the folder of a program first; then the rooms would be top-level modules such as ``data``.
sys.path[0] = str(Path(__file__).resolve().parents[1])

PROGRAMS = {
    'agent': 'recipe.launch.agent',
    'start': 'recipe.launch.start',
    'train': 'recipe.launch.trainer',
    'evaluate': 'recipe.launch.evaluator',
    'memory': 'recipe.engine.step_memory',
    'allreduce': 'recipe.launch.allreduce',
    'check': 'recipe.setup.check',
    'keep': 'recipe.core.tied_process',
}

if __name__ == '__main__':
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ''
    if name not in PROGRAMS:
        sys.exit(f'usage: python recipe {"|".join(PROGRAMS)} ARGUMENTS')
    if name != 'check':
        importlib.import_module('recipe.core.left_out').leave_out_other_models()
    sys.exit(importlib.import_module(PROGRAMS[name]).main())
