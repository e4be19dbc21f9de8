"""Evaluates a checkpoint: checks, ranks that predict, and what the predictions show.

What is in the evaluation folder already is not predicted again. Nothing is written before the last check has passed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe import __version__
from recipe.core import console, exit_status, files, inputs, run_folder, run_lock
from recipe.data.progress_bar import ProgressBar
from recipe.evaluate import classes, official, predict, submission
from recipe.evaluate import folder as evaluation_folder
from recipe.evaluate import pictures as finding
from recipe.evaluate.pictures import Picture
from recipe.launch import cli, job, progress, restarts
from recipe.launch.plan import Plan

_GOES_ON = 'goes on with what is missing'
_AGAIN = 'start the same command again, which keeps the predictions that are there'
_ADVICE = {
    exit_status.NONFINITE: '',  # the rank's own line says it
    exit_status.UNREADABLE: f'bring the file again and {_AGAIN}',
}
_TASK = 'task.json'
_BYTES_PER_PIXEL = 0.5  # of a prediction, at most; a label map shrinks to a tenth of that
_LOOK_S = 1.0


def _advice(status: int) -> str:
    return _ADVICE.get(status, _AGAIN)


def prepare(plan: Plan) -> Tuple[List[Picture], Dict[str, Any]]:
    """List the pictures and choose the folder.

    Args:
        plan: Passed the checks; gets its folder.

    Returns:
        The pictures, and what decides the predictions.

    Raises:
        console.UserError: Files are missing, or the folder cannot be used.
    """
    asked = plan.options
    data = plan.data_set
    pictures = finding.find(plan.data_root, asked.split) if data is None else finding.of_set(data, asked.split)
    if asked.official:
        absent = finding.missing(pictures, 'label_ids')
        if absent:
            raise console.UserError(
                f'--official: {len(absent)} of {len(pictures)} files of label ids are missing, first: {absent[0]}',
                'unpack them again',
            )
    identity = _identity(plan, pictures)
    plan.folder = evaluation_folder.choose(identity, plan.trained.path.stem, asked.work_dir)
    width, height = finding.size(pictures[0])
    needed = int(len(pictures) * width * height * _BYTES_PER_PIXEL)
    run_folder.require_space(plan.folder, needed, 'the predictions')
    if asked.submission is not None:
        run_folder.require_space(inputs.absolute(asked.submission).parent, needed, 'the archive')
    return pictures, identity


def _identity(plan: Plan, pictures: List[Picture]) -> Dict[str, Any]:
    """All that decides what is predicted; plain JSON types."""
    import torch

    asked = plan.options
    return {
        'checkpoint_sha256': files.sha256(plan.trained.path),
        'config_sha256': files.sha256(asked.config) if asked.config else None,
        'split': asked.split,
        **({} if asked.dataset is None else {'dataset_sha256': files.sha256(inputs.absolute(asked.dataset))}),
        'pictures': len(pictures),
        'pictures_sha256': finding.digest(pictures),
        'batch_size': _batch_size(plan),
        'mode': asked.mode,
        'tta': asked.tta,
        'amp': asked.amp or 'off',
        'tf32': asked.tf32,
        'fast': asked.fast,
        'device': plan.device,
        'recipe': __version__,
        'torch': torch.__version__,
    }


def _batch_size(plan: Plan) -> int:
    loader = plan.trained.config.get('val_dataloader') or {}
    return plan.options.batch_size or int(loader.get('batch_size') or 1)


class _Predicting(ProgressBar):
    """Shows how many predictions there are; a context manager."""

    def __init__(self, folder: Path, total: int) -> None:
        super().__init__('predicting', total, progress.LINE_EVERY_S)
        self._predictions = predict.predictions_of(folder)
        self._begin = time.monotonic()
        self._first = self._done()
        self._next_look = self._begin

    def _done(self) -> int:
        names = [one.name for one in self._predictions.iterdir()] if self._predictions.is_dir() else []
        return sum(not name.startswith(files.PARTIAL_PREFIX) for name in names)

    def look(self) -> None:
        """Count the files, at most once a second."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        done = self._done()
        new = done - self._first
        self.update(done, f'{new / (now - self._begin):.3g} images/s' if new else '')


def run_ranks(plan: Plan, pictures: List[Picture], lock: run_lock.RunLock) -> None:
    """Predict what is missing.

    Args:
        plan: What to run.
        pictures: The pictures.
        lock: Lock of ``plan.own_folder``.

    Raises:
        console.UserError: A rank failed, or a signal ended them; carries the exit status.
    """
    asked = plan.options
    task = predict.Task(
        checkpoint=str(plan.trained.path),
        config=str(inputs.absolute(asked.config)) if asked.config else None,
        folder=str(plan.folder),
        pictures=[(picture.name, picture.path) for picture in pictures],
        batch_size=_batch_size(plan),
        num_workers=2 if asked.num_workers is None else asked.num_workers,
        device=plan.device,
        mode=asked.mode,
        tta=asked.tta,
        amp=asked.amp or 'off',
        fast=asked.fast,
        tf32=asked.tf32,
        as_label_ids=plan.data_set is None,
    )
    with _Predicting(plan.folder, len(pictures)) as shown:
        program = ['evaluate', str(task.write(plan.own_folder / _TASK))]
        ended = job.run(plan, program, lock, shown.look, _GOES_ON, _advice)
        if ended is not None:
            raise console.UserError(f'{ended.name} ended the evaluation; {_AGAIN}', status=128 + ended)
        if asked.is_first_node:
            _wait_for_other_machines(plan, pictures, shown)


def _wait_for_other_machines(plan: Plan, pictures: List[Picture], shown: _Predicting) -> None:
    """Wait until all predictions are there, as long as new ones come."""
    patience = restarts.HANG_TIMEOUT_S[plan.device] if plan.options.hang_timeout is None else plan.options.hang_timeout
    left, since = len(pictures) + 1, time.monotonic()
    while True:
        missing = predict.to_predict(pictures, plan.folder)
        if not missing:
            return
        if len(missing) < left:
            left, since = len(missing), time.monotonic()
        if plan.options.nnodes == 1 or (patience and time.monotonic() - since > patience):
            raise console.UserError(f'{len(missing)} predictions are missing, first: {missing[0]}', _AGAIN)
        shown.look()
        time.sleep(_LOOK_S)


def report(plan: Plan, pictures: List[Picture], identity: Dict[str, Any]) -> None:
    """Count the predictions, and write and print what was found.

    Raises:
        console.UserError: A file is damaged, or the official evaluation found something else.
    """
    from recipe.evaluate import result

    asked = plan.options
    found: Optional[result.Evaluated] = None
    if asked.needs_labels:
        found = result.evaluate(pictures, plan.folder, asked.official, classes.of_set(plan.data_set))
    facts = {'checkpoint': str(plan.trained.path), **identity}
    speed = predict.speed(plan.folder)
    written = result.write(found, result.describe(found, facts, speed), pictures, plan.folder)
    if found is not None:
        result.show(found)
    if speed:
        console.say(f'images/s {speed["images_per_s"]:.2f} over {speed["ranks"]} x {plan.device}')
    for path in written:
        console.say(f'wrote    {path}')
    if found is not None and asked.official:
        result.require_agreement(found)
        console.say(f'official the same to {official.TOLERANCE}')
    if asked.submission is not None:
        archive = inputs.absolute(asked.submission)
        submission.write(archive, pictures, predict.predictions_of(plan.folder))
        console.say(f'wrote    {archive}: {len(pictures)} pictures, checked')


def main(argv: List[str]) -> None:
    """Check, predict and report.

    Args:
        argv: The options.
    """
    plan = Plan(cli.read_options('evaluate', argv))
    cli.prepare(plan)
    pictures, identity = prepare(plan)
    with cli.hold_folder(plan, may_be_used=True) as lock:
        console.log_to(plan.own_folder / run_folder.LAUNCHER_LOG)
        console.say(f'folder   {plan.folder}')
        if plan.options.is_first_node:
            _begin(plan, identity)
        cli.write_start(plan, argv, _batch_size(plan))
        missing = predict.to_predict(pictures, plan.folder)
        if len(missing) < len(pictures):
            console.say(f'predicted already: {len(pictures) - len(missing)} of {len(pictures)} pictures')
        if missing or plan.options.nnodes > 1:
            if plan.options.is_first_node:
                predict.forget_speed(plan.folder)
            run_ranks(plan, pictures, lock)
        if plan.options.is_first_node:
            report(plan, pictures, identity)


def _begin(plan: Plan, identity: Dict[str, Any]) -> None:
    """Make the folder ready: nobody else writes there, and it may hold what a killed start left."""
    evaluation_folder.require_same(plan.folder, identity)
    evaluation_folder.claim(plan.folder, identity)
    predictions = predict.predictions_of(plan.folder)
    predictions.mkdir(exist_ok=True)
    files.sweep(predictions)
