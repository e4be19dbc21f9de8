"""The upstreams' own tests of what the patches touch, on the patched trees.

mmcv's and mmdetection's source distributions carry none of theirs; where the checkout came from git, they run too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Tests that fail on the unpatched tree as well, with what each needs.
DESELECT = {
    'mmsegmentation': {
        'tests/test_models/test_heads/test_psa_head.py::test_psa_head': 'the compiled operator psamask',
        'tests/test_models/test_segmentors/test_depth_estimator.py': 'diffusers and other packages of VPD',
    }
}
SUITES = [
    ('mmsegmentation', 'tests/test_models/test_backbones/test_swin.py'),
    ('mmsegmentation', 'tests/test_models/test_heads'),
    ('mmsegmentation', 'tests/test_models/test_segmentors'),
    ('mmsegmentation', 'tests/test_models/test_data_preprocessor.py'),
    ('mmsegmentation', 'tests/test_digit_version.py'),
    ('mmsegmentation', 'tests/test_sampler.py'),
    ('mmsegmentation', 'tests/test_engine'),
    ('mmcv', 'tests/test_ops/test_ms_deformable_attn.py'),
    ('mmdetection', 'tests/test_models/test_task_modules/test_samplers/test_pesudo_sampler.py'),
]


@pytest.mark.parametrize('name', ['mmcv', 'mmdetection', 'mmsegmentation'])
def test_upstream_suite(name):
    suites = [path for owner, path in SUITES if owner == name and (ROOT / name / path).exists()]
    if not suites:
        pytest.skip(f'{name} came as a source distribution, which carries no tests of what the patch touches')
    deselect = [f'--deselect={test}' for test in DESELECT.get(name, {})]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--rootdir=.', *deselect, *suites]
    done = subprocess.run(command, cwd=ROOT / name, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
