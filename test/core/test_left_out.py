"""What the processes of a training do without."""

import subprocess
import sys

import pytest

CODE = """
import sys
from recipe.core import left_out
left_out.leave_out_other_models()
from recipe.engine import components
import mmdet.utils
print([name for name in ('matplotlib', 'transformers') if sys.modules.get(name)])
try:
    mmdet.utils.imshow_mot_errors()
except NotImplementedError as error:
    print(error)
"""


@pytest.mark.trains
def test_mmdet_is_imported_without_what_no_recipe_needs():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        '[]',
        'the recipe leaves imshow_mot_errors and matplotlib out of launchers and ranks',
    ]
