"""The emulator's own tests: they test the double, not the recipe, so they run when the double has changed.

    python test/npu/own_tests.py NOTE      # note that they passed on the emulator as it is

test/npu/run.sh --emulator runs them and writes the note, emulator_tested.sha256. A run without that option runs
them too if the note is missing or is about other files.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import List

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NOTE = HERE / 'emulator_tested.sha256'
OWN_TESTS = ['test_collectives.py', 'test_device.py', 'test_hccl.py', 'test_kernels.py']
# What the emulator is made of, what its tests use, and the packages of the stack that they are noted for, npu-2.1.
FILES = ['emulator/*.*', 'emulator/kernels/*', 'emulator/site/*', 'collectives_job.py', 'hccl_calls.py']
REQUIREMENTS = ['npu.txt', 'npu-2.1*.txt']


def files() -> List[Path]:
    """The files that decide how the emulator's own tests end."""
    found = [path for pattern in FILES + OWN_TESTS for path in HERE.glob(pattern) if path.is_file()]
    needs = [path for name in REQUIREMENTS for path in (ROOT / 'requirements').glob(name)]
    return sorted([*found, *needs])


def digest() -> str:
    """A hash of the names and contents of these files."""
    total = hashlib.sha256()
    for path in files():
        total.update(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT)}\n'.encode())
    return total.hexdigest()


def needed() -> bool:
    """Whether something has changed since the own tests last passed, as the note has it."""
    return not NOTE.is_file() or NOTE.read_text().strip() != digest()


if __name__ == '__main__':
    Path(sys.argv[1]).write_text(digest() + '\n')
