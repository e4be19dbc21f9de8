"""A stranger's set, no file edited by hand: inspect, verify, train, resume, evaluate, predict, by class name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import own_sets
from launch_sandbox import TINY, TINY_OVERRIDES, Sandbox
from recipe.data.sets import file

CASES = {
    'palette': (30, range(30)),
    'rgb': (4, range(4)),
    'indices': (4, (0, 3, 7, 12)),
}
OVERRIDES = [word for word in TINY_OVERRIDES if 'data_preprocessor' not in word]  # the size follows from the file


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp('sandbox'))


def evaluate(sandbox: Sandbox, *argv: str) -> subprocess.CompletedProcess:
    command = ['bash', str(sandbox.root / 'test' / 'evaluate_8p.sh'), *argv, '--device=cpu', '--nproc=1']
    return subprocess.run(command, env=sandbox.env, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.release
@pytest.mark.trains
@pytest.mark.parametrize('kind', CASES)
def test_from_a_folder_to_figures_by_class_name(sandbox: Sandbox, kind: str) -> None:
    classes, values = CASES[kind]
    root = own_sets.make(sandbox.home / kind, kind, classes, ((128, 64), (96, 96)), (16, 8), values)
    names = [f'name_{value}' for value in values]
    sandbox.tool('dataset.py', 'inspect', str(root))
    sandbox.tool('dataset.py', 'verify', str(root / file.NAME))
    run = sandbox.home / f'run_{kind}'
    given = [*TINY, f'--dataset={root / file.NAME}', f'--work_dir={run}', '--nproc=1']
    done = sandbox.run('full', *given, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / 'result.json').read_text())
    assert list(result['class_iou_last_percent']) == names
    assert (run / 'predictions.png').stat().st_size
    done = sandbox.run('full', *given, '--max_iters=18', '--resume=1', *OVERRIDES)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / 'result.json').read_text())
    assert result['iters_done'] == 18
    folder = sandbox.home / f'evaluated_{kind}'
    done = evaluate(sandbox, f'--dataset={root / file.NAME}', f'--checkpoint={run}', f'--work_dir={folder}')
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / 'result.json').read_text())
    assert list(found['class_iou_percent']) == list(found['class_boundary_iou_percent']) == names
    assert not [key for key in found if key.startswith('category') or 'iiou' in key]
    assert (folder / 'confusion.csv').read_text().splitlines()[0] == ','.join(['pixels: label \\ prediction', *names])
    predict = [
        sys.executable,
        str(sandbox.root / 'tools/predict.py'),
        str(root / 'images/val/s100.jpg'),
        '--device=cpu',
    ]
    predict += [f'--checkpoint={run}', f'--out={sandbox.home / f"predicted_{kind}"}', f'--classes={names[1]}']
    predicted = subprocess.run(predict, env=sandbox.env, capture_output=True, text=True, check=False)
    assert predicted.returncode == 0, predicted.stderr


@pytest.mark.release
@pytest.mark.trains
def test_cityscapes_through_a_file_has_the_losses_without_it(sandbox: Sandbox) -> None:
    data = sandbox.make_data('cityscapes')
    sandbox.tool('dataset.py', 'inspect', str(data))
    built_in = sandbox.root / 'recipe/data/sets' / file.CITYSCAPES.name
    ways = {
        'plain': [f'--data_path={data}'],
        'built_in': [f'--data_path={data}', f'--dataset={built_in}'],
        'inspected': [f'--dataset={data / file.NAME}'],
    }
    curves = {}
    for name, given in ways.items():
        run = sandbox.home / f'run_{name}'
        overrides = [*OVERRIDES, 'model.data_preprocessor.size=(64,128)']
        done = sandbox.run('full', *TINY, '--nproc=1', '--seed=3', *given, f'--work_dir={run}', *overrides)
        assert done.returncode == 0, done.stderr
        curves[name] = json.loads((run / 'result.json').read_text())['loss_curve']
    assert len(curves['plain']) == 6
    assert curves['plain'] == curves['built_in'] == curves['inspected']
