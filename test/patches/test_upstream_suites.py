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
MMSEG_MODELS = 'tests/test_models'
SUITES = {
    'mmcv': ['tests/test_ops/test_ms_deformable_attn.py'],
    'mmdetection': ['tests/test_models/test_task_modules/test_samplers/test_pesudo_sampler.py'],
    'mmsegmentation': [
        f'{MMSEG_MODELS}/test_backbones/test_swin.py',
        f'{MMSEG_MODELS}/test_heads/test_decode_head.py',
        f'{MMSEG_MODELS}/test_heads/test_mask2former_head.py',
        f'{MMSEG_MODELS}/test_heads/test_maskformer_head.py',
        f'{MMSEG_MODELS}/test_segmentors/test_encoder_decoder.py',
        f'{MMSEG_MODELS}/test_segmentors/test_seg_tta_model.py',
        f'{MMSEG_MODELS}/test_data_preprocessor.py',
        'tests/test_digit_version.py',
        'tests/test_sampler.py',
        'tests/test_engine',
    ],
}
# Models that no patch changes, and that use what patches do change.
OTHER_MODELS = {'mmsegmentation': [f'{MMSEG_MODELS}/test_heads', f'{MMSEG_MODELS}/test_segmentors']}


def run(name, suites):
    suites = [path for path in suites if (ROOT / name / path).exists()]
    if not suites:
        pytest.skip(f'{name} came as a source distribution, which carries no tests of what the patch touches')
    deselect = [f'--deselect={test}' for test in DESELECT.get(name, {})]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--rootdir=.', *deselect, *suites]
    done = subprocess.run(command, cwd=ROOT / name, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.trains
@pytest.mark.parametrize('name', SUITES)
def test_upstream_suite(name):
    run(name, SUITES[name])


@pytest.mark.release
@pytest.mark.parametrize('name', OTHER_MODELS)
def test_upstream_suite_of_other_models(name):
    run(name, OTHER_MODELS[name])
