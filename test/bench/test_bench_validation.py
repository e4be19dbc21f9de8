"""The benchmark of validations: both sides on the same pictures, and nothing where they differ."""

import pytest

from recipe.bench import cli, validation
from recipe.core import console

pytestmark = pytest.mark.trains


def test_both_sides_validate_the_same_pictures(capsys):
    arguments = [
        'validation',
        '--device=cpu',
        '--crop=64x64',
        '--images=2',
        '--repeats=1',
        '--workers=0',
        '--threads=1',
    ]
    result = cli.run_validation(cli.parse(arguments))
    assert result['metrics']['upstream'] == pytest.approx(result['metrics']['ours'], abs=validation.TOLERANCE)
    assert set(result['metrics']['ours']) == {'aAcc', 'mIoU', 'mAcc'}
    assert len(result['images_per_second']['ours']['values']) == 1
    assert result['images_per_second']['ratio'] > 0


@pytest.mark.parametrize('ours', [{'mIoU': 51.0}, {'mIoU': float('nan')}, {'aAcc': 50.0}])
def test_other_metrics_are_refused(ours):
    validation.require_same({'mIoU': 50.0}, {'mIoU': 50.01})
    with pytest.raises(console.UserError, match=r'the metrics differ: .*nothing is reported'):
        validation.require_same({'mIoU': 50.0}, ours)
