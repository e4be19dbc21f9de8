"""The unpatched upstream beside the patched one; see tools/sides.py for how a test uses them."""

from pathlib import Path

import pytest

from recipe.bench import sides as sides_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session')
def sides():
    """Both workers, started once: upstream first, ours second.

    One thread each: on such small tensors more only wait for each other, and some sums would depend on their order.
    """
    if not (ROOT / 'mmsegmentation').is_dir():
        pytest.skip('no checkouts; run bash tools/setup.sh')
    with sides_module.Sides(threads=1) as pair:
        yield pair
