"""The judgement of tools/compare_precision.py over runs that are made up."""

import json

import pytest

from recipe.bench import precision
from recipe.core import console


def runs(folder, **miou):
    """Write the results of finished runs: off=[...], bf16=[...]."""
    for amp, values in miou.items():
        for seed, value in enumerate(values):
            run = precision.folder_of(folder, amp, seed)
            run.mkdir(parents=True)
            (run / 'result.json').write_text(json.dumps({'complete': True, 'miou_last_percent': value}))


@pytest.mark.parametrize(
    ('half', 'status'), [([50.0, 51.5, 49.0], 0), ([47.0, 48.0, 46.0], 1), ([53.0, 54.0, 52.0], 1)]
)
def test_means_further_apart_than_two_standard_errors_are_no_noise(tmp_path, capsys, half, status):
    runs(tmp_path, off=[50.0, 51.0, 49.0], bf16=half)
    assert precision.main(['judge', str(tmp_path)]) == status
    written = json.loads((tmp_path / 'precision.json').read_text())
    assert written['within_noise'] == (status == 0)
    assert written['float32']['mean_percent'] == 50.0 and written['float32']['standard_deviation_percent'] == 1.0
    assert ('within' if status == 0 else 'beyond') in capsys.readouterr().out


def test_runs_that_are_missing_or_not_complete_are_refused(tmp_path):
    runs(tmp_path, off=[50.0, 51.0], bf16=[50.0])
    with pytest.raises(console.UserError, match='1 finished runs of bf16'):
        precision.main(['judge', str(tmp_path)])
    with pytest.raises(console.UserError, match='seeds differ'):
        precision.judge({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})
    path = precision.folder_of(tmp_path, 'off', 1) / 'result.json'
    path.write_text(json.dumps({'complete': False, 'miou_last_percent': 50.0}))
    with pytest.raises(console.UserError, match='not complete'):
        precision.main(['judge', str(tmp_path)])


def test_runs_are_made_for_each_seed_and_precision_and_none_twice(tmp_path, monkeypatch):
    asked = []

    def launch(command, check):
        asked.append([word for word in command if word.startswith(('--amp', '--seed', '--nproc'))])
        folder = next(word.partition('=')[2] for word in command if word.startswith('--work_dir'))
        runs_of = {'complete': True, 'miou_last_percent': 50.0 + len(asked)}
        precision.Path(folder).mkdir(parents=True)
        (precision.Path(folder) / 'result.json').write_text(json.dumps(runs_of))
        return precision.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(precision.subprocess, 'run', launch)
    for _ in range(2):
        precision.main(['run', str(tmp_path), '--amp=fp16', '--seeds=2', '--', '--nproc=1'])
    assert asked == [[f'--amp={amp}', f'--seed={seed}', '--nproc=1'] for seed in (0, 1) for amp in ('off', 'fp16')]


def test_a_run_that_fails_ends_it(tmp_path, monkeypatch):
    failed = precision.subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(precision.subprocess, 'run', lambda command, check: failed)
    with pytest.raises(console.UserError, match='failed with exit status 3'):
        precision.main(['run', str(tmp_path)])
