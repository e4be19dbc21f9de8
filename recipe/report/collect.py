"""Computes the figures of a run and finds those that are missing or not a number."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from recipe.core import config_text, console
from recipe.report import run as metrics_run
from recipe.report import scalars, window
from recipe.report.points import LAST_ITER
from recipe.report.result import MOST_CURVE_POINTS, SCHEMA, Result, Window

FIGURES = ('fps', 'miou', 'loss', 'memory', 'e2e', 'class_iou')
REQUIRED = {'full': ('fps', 'miou'), 'performance': ('fps',)}
ACCUMULATE = 'train_cfg.accumulate'
NUM_POINTS = 'model.decode_head.train_cfg.num_points'
DEFAULT_LOG_WINDOW = 10  # mmengine.runner.LogProcessor's window_size


def collect(
    path: Path,
    require: Sequence[str] = REQUIRED['full'],
    batch_size: Optional[int] = None,
    nproc: Optional[int] = None,
    e2e_duration_s: Optional[float] = None,
    partial: bool = False,
) -> Result:
    """Read a run and compute its figures.

    Args:
        path: Run folder or log.
        require: Names from ``FIGURES`` that must be there.
        batch_size: Images per card, instead of the run's own record.
        nproc: Processes, instead of the run's own record.
        e2e_duration_s: Seconds of the last start, as measured by the launcher.
        partial: Accept a training that stopped before its last iteration.

    Raises:
        UserError: A required figure is missing, any figure is NaN, the training is incomplete, a file is damaged.
    """
    run = metrics_run.read_run(path, batch_size, nproc)
    result = _describe(run)
    faults: List[str] = []
    if not result.complete and not partial:
        faults.append(
            f'the training stopped at iteration {result.iters_done} of {result.iters_planned}: finish it '
            '(--resume=1), or give --partial for the figures so far'
        )
    faults += _add_losses(result, run, 'loss' in require)
    faults += _add_miou(result, run, 'miou' in require and not faults)
    faults += _add_speed(result, run, 'fps' in require)
    result.memory_peak_mb = run.points.largest_memory_mb()
    if 'memory' in require and result.memory_peak_mb is None:
        faults.append('peak memory is missing: mmengine logs it on accelerators only')
    if 'class_iou' in require and not result.class_iou_last_percent:
        faults.append('the table of class IoU is missing: it is in the text log (<timestamp>.log) only')
    result.e2e_duration_s = _e2e(run, e2e_duration_s, result.warnings)
    if result.e2e_duration_s is None:
        fault = 'the E2E duration is missing: it needs the text log, or --e2e_duration_s'
        if 'e2e' in require:
            faults.append(fault)
        else:
            result.warnings.append(fault)
    if faults:
        raise console.UserError(f'{path}: {"; ".join(faults)}')
    return result


def _describe(run: metrics_run.Run) -> Result:
    last = run.starts[-1]
    done = max(start.last_iter for start in run.starts)
    planned = run.planned_iters
    # A log of every n-th iteration may end up to n - 1 iterations before the training did.
    points = run.points
    gap = 1 if last.steps else points.largest_gap()
    versions = {**last.log.versions, **run.launcher}
    for key in ('world_size', 'batch_size', 'accumulate', 'device'):
        versions.pop(key, None)
    warnings = list(run.warnings)
    if run.other_starts:
        warnings.append(f'{len(run.other_starts)} start(s) logged no iteration')
    if len(points) > MOST_CURVE_POINTS:
        warnings.append(
            f'{len(points)} iterations are logged: all count for the figures, the curves and loss.txt hold one in '
            f'{-(-len(points) // MOST_CURVE_POINTS)}'
        )
    num_points = [config_text.lookup_int(start.config, NUM_POINTS) for start in run.starts]
    if len(set(num_points)) > 1:
        warnings.append(f'num_points differs between the starts of this run: {", ".join(map(str, num_points))}')
    return Result(
        schema=SCHEMA,
        run_name=run.path.resolve().name,
        complete=planned is None or done + gap > planned or last.log.early_stop_iter is not None,
        iters_done=done,
        iters_planned=planned,
        starts=len(run.starts),
        resumed_at_iter=run.resumed_at,
        early_stop_iter=last.log.early_stop_iter,
        world_size=last.world_size,
        batch_size_per_card=last.batch_size,
        accumulate=config_text.lookup_int(last.config, ACCUMULATE) or 1,
        global_batch=last.global_batch,
        num_points=config_text.lookup_int(last.config, NUM_POINTS),
        device=run.launcher.get('device') or last.log.device,
        versions=versions,
        validations=[_figures_of(validation) for validation in run.validations],
        loss_curve=points.pairs('loss', MOST_CURVE_POINTS),
        learning_rate_curve=points.pairs('learning_rate', MOST_CURVE_POINTS),
        warnings=warnings,
        run=run,
    )


def _figures_of(validation: scalars.Validation) -> Dict[str, Any]:
    figures = dataclasses.asdict(validation)
    for key in ('after_iter', 'saved_iter'):  # needed only to find iter
        del figures[key]
    return figures


def _add_losses(result: Result, run: metrics_run.Run, required: bool) -> List[str]:
    points = run.points
    bad = points.not_finite()
    if points:
        last = points[-1]
        result.loss_final, result.loss_final_iter = last.loss, last.iter
        if not math.isfinite(last.loss):
            file = run.starts[-1].files
            return [
                f'the loss is {last.loss} at iteration {last.iter} (first at {bad[0]}, in '
                f'{file.get("scalars", file.get("text"))}): lower the learning rate, or train without --amp fp16'
            ]
    elif required:
        return ['the loss is missing: no training iteration was logged, is log interval > iterations?']
    if bad:
        result.warnings.append(f'the loss is not finite at {len(bad)} logged iteration(s), first at {bad[0]}')
    return []


def _add_miou(result: Result, run: metrics_run.Run, required: bool) -> List[str]:
    validations = run.validations
    if not validations:
        return ['mIoU is missing: no validation was logged, is val_interval > max_iters?'] if required else []
    last = validations[-1]
    best = max(
        validations, key=lambda item: (item.miou_percent if math.isfinite(item.miou_percent) else -1, -item.placed_iter)
    )
    for figure, value in (('mIoU', last.miou_percent), ('mAcc', last.macc_percent), ('aAcc', last.aacc_percent)):
        if value is not None and not math.isfinite(value):
            return [
                f'{figure} is {value} in the validation at iteration {last.iter}: do the validation labels hold any '
                'class? This command tells: python tools/cityscapes.py verify --data_path ROOT, or with a '
                'dataset.json: python tools/dataset.py verify FILE'
            ]
    if required and result.complete and run.val_interval and result.iters_planned:
        # mmengine 0.10.3 validates after the last iteration only if it is a multiple of the interval.
        due = (result.early_stop_iter or result.iters_planned) // run.val_interval * run.val_interval
        if last.placed_iter < due:
            return [
                f'mIoU is missing: the validation at iteration {due} was not logged, the last one is at {last.iter}'
            ]
    result.miou_last_percent, result.miou_last_iter = last.miou_percent, last.iter
    result.miou_best_percent, result.miou_best_iter = best.miou_percent, best.iter
    result.macc_last_percent, result.aacc_last_percent = last.macc_percent, last.aacc_percent
    result.class_iou_last_percent = last.class_iou_percent
    return []


def _add_speed(result: Result, run: metrics_run.Run, required: bool) -> List[str]:
    import numpy

    if result.global_batch is None:
        unknown = 'images per card' if result.batch_size_per_card is None else 'number of processes'
        option = '--batch_size' if result.batch_size_per_card is None else '--nproc'
        fault = f'FPS is missing: the log does not tell the {unknown}, give {option}'
        return [fault] if required else []
    _add_logged_mean(result, run)
    measured = bool(run.steps)
    parts: List[Any] = []
    every: List[Any] = []
    warm_up_iters = []
    excluded = []
    for start in run.starts:
        if start.last_iter < start.first_iter:
            continue  # a later start repeated all of it
        if start.global_batch != result.global_batch:
            excluded.append(f'{start.first_iter}-{start.last_iter} (global batch {start.global_batch})')
            continue
        samples = _steps(start) if measured else _logged(start)
        lost = start.last_iter - start.first_iter + 1 - len(samples) if measured else 0
        if not measured:  # times of the wall clock, which may have been set
            no_time = samples['step_s'] <= 0
            if no_time.any():
                samples = samples[~no_time]
                excluded.append(f'{no_time.sum()} logged means that are no time, as after the clock was set')
        for sample in samples[~(numpy.isfinite(samples['step_s']) & (samples['step_s'] > 0))][:1]:
            return [f'FPS is missing: the step time at iteration {sample["last_iter"]} is {sample["step_s"]} s']
        every.append(samples)
        warm = window.after_warm_up(samples, start.first_iter, start.last_iter)
        parts.append(warm)
        until = int(warm[0]['last_iter'] - warm[0]['iterations']) if len(warm) else start.last_iter
        warm_up_iters.append((start.first_iter, until))
        excluded.append(f'{start.first_iter}-{until} (warm-up)')
        if lost:
            excluded.append(
                f'{lost} of {start.first_iter}-{start.last_iter} whose times a killed process did not write'
            )
    if not sum(map(len, every)):
        return ['FPS is missing: no step time was logged'] if required else []
    if not sum(map(len, parts)):
        parts, warm_up_iters = every, []
        excluded = [what for what in excluded if not what.endswith('(warm-up)')]
        result.warnings.append(
            'the images per second and the step times include the warm-up: the training has too few iterations to '
            'leave it out (10 % of each start, 5 to 100 iterations); train longer for figures to compare'
        )
    kept = parts[0] if len(parts) == 1 else numpy.concatenate(parts)
    figures = window.timing(kept, result.global_batch)
    for name in ('fps_images_per_s', 'step_time_mean_s', 'step_time_p50_s', 'step_time_p95_s'):
        setattr(result, name, getattr(figures, name))
    result.data_time_mean_s, result.data_time_p95_s = figures.data_time_mean_s, figures.data_time_p95_s
    if measured:
        excluded.append('validation and checkpointing')
    result.fps_window = Window(
        first_iter=int(kept[0]['last_iter'] - kept[0]['iterations'] + 1),
        last_iter=int(kept[-1]['last_iter']),
        iterations=figures.iterations,
        source=(
            'each measured (steps.csv)'
            if measured
            else f'means over up to {_log_window(run.starts[-1])} iterations from the log (no steps.csv), '
            'which include checkpointing and the end of validation'
        ),
        warm_up_iters=warm_up_iters,
        excluded=excluded,
    )
    return []


def _add_logged_mean(result: Result, run: metrics_run.Run) -> None:
    """Add the figures that Ascend's scripts compute with ``grep`` and ``awk``."""
    starts = [start for start in run.starts if start.global_batch == result.global_batch]
    times = [time for start in starts for time in start.log.points.column('step_s').tolist() if 0 < time < math.inf]
    if times and result.global_batch:
        result.step_time_logged_mean_s = sum(times) / len(times)
        result.fps_logged_mean_images_per_s = result.global_batch / result.step_time_logged_mean_s


def _steps(start: metrics_run.Start) -> Any:
    return window.samples([(step.iter, step.iter, 1, step.step_s, step.data_s) for step in start.steps])


def _logged(start: metrics_run.Start) -> Any:
    """Means in the log, each over the last ``window_size`` iterations, which may be fewer than the logging interval."""
    import numpy

    points, size = start.log.points, min(_log_window(start), LAST_ITER)
    iters = points.column('iter')
    found = window.empty(len(points))
    found['last_iter'] = iters
    found['first_iter'] = numpy.maximum(start.first_iter, iters - size + 1)
    found['iterations'] = numpy.minimum(size, numpy.diff(iters, prepend=start.first_iter - 1))
    found['step_s'], found['data_s'] = points.column('step_s'), points.column('data_s')
    found['data_s'][numpy.isneginf(found['data_s'])] = numpy.nan
    logged = ~numpy.isneginf(found['step_s'])
    return found if logged.all() else found[logged]


def _log_window(start: metrics_run.Start) -> int:
    return config_text.lookup_int(start.config, 'log_processor.window_size') or DEFAULT_LOG_WINDOW


def _e2e(run: metrics_run.Run, measured_s: Optional[float], warnings: List[str]) -> Optional[float]:
    """Seconds of all sessions plus, from their text logs, those of all starts outside of a session."""
    measured = {name for session in run.sessions for name in session.starts}
    starts = sorted([*run.starts, *run.other_starts], key=lambda start: start.name)
    logged = [start for start in starts if start.name not in measured]
    parts = [session.seconds for session in run.sessions]
    if measured_s is not None and logged and logged[-1] is starts[-1]:
        parts.append(measured_s)
        logged.pop()
    elif measured_s is not None:
        parts[-1] = measured_s
    for start in logged:
        if start.seconds is None and start.first_iter is not None:
            return None
        parts.append(start.seconds or 0.0)
        if start.log.clock_steps:
            warnings.append(
                f'{start.files["text"]}: the clock was set {start.log.clock_steps} time(s) in this start; its duration '
                'counts without those moments'
            )
    return sum(parts)
