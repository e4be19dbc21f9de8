"""Runs one iteration of a trainer to time it, count its operators, measure its memory or trace it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch

from recipe.bench import counts as bench_counts
from recipe.bench import model as bench_model
from recipe.bench.trainer import Trainer
from recipe.engine import peak_memory

PARTS = ('forward+loss', 'backward', 'optimizer', 'loop')


def device_of(trainer: Trainer) -> torch.device:
    """The device that a trainer trains on."""
    return next(trainer.model.parameters()).device


def describe(trainer: Trainer) -> Dict[str, Any]:
    """Device, precision and versions, for the report."""
    device = device_of(trainer)
    name = 'cpu' if device.type == 'cpu' else getattr(torch, device.type).get_device_name(device)
    return {
        'device': device.type,
        'device_name': name,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'parameters': sum(parameter.numel() for parameter in trainer.model.parameters()),
        'parameter_groups': len(trainer.runner.optim_wrapper.optimizer.param_groups),
    }


def _synchronize(device: torch.device) -> None:
    if device.type != 'cpu':
        getattr(torch, device.type).synchronize()


def timed(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: int) -> Dict[str, Any]:
    """Run one iteration with a clock.

    Args:
        trainer: The trainer.
        batch: Images and labels.
        seed: Seed of torch's random state before it.

    Returns:
        ``whole_s`` in seconds; ``parts_s`` by part; ``losses`` by name. Timing the parts synchronises the device, so on
        an
        accelerator ``whole_s`` comes from a second iteration, which waits for the device only at its end.
    """
    device = device_of(trainer)
    marks: Dict[str, float] = {}
    wrapper = trainer.runner.optim_wrapper
    originals = {name: getattr(wrapper, name) for name in ('backward', 'step', 'zero_grad')}

    def clocked(function: Callable, name: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            _synchronize(device)
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            _synchronize(device)
            marks.setdefault(f'{name} begins', begin)
            marks[f'{name} takes'] = marks.get(f'{name} takes', 0) + time.perf_counter() - begin
            return result

        return call

    for name, function in originals.items():
        setattr(wrapper, name, clocked(function, name))
    try:
        whole = _run(trainer, batch, seed, device, marks)
    finally:
        for name in originals:
            delattr(wrapper, name)
    losses = {name: float(value) for name, value in trainer.outputs.items()}
    parts = {
        'forward+loss': marks['backward begins'] - marks['begins'],
        'backward': marks['backward takes'],
        'optimizer': marks['step takes'] + marks.get('zero_grad takes', 0),
    }
    parts['loop'] = whole - sum(parts.values())
    if device.type != 'cpu':
        whole = _run(trainer, batch, seed, device, {})
    return {'whole_s': whole, 'parts_s': parts, 'losses': losses}


def one_iteration(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: int, device: torch.device) -> float:
    """Seconds of one iteration, with the device synchronised before and after."""
    return _run(trainer, batch, seed, device, {})


def _run(
    trainer: Trainer,
    batch: Dict[str, List[torch.Tensor]],
    seed: int,
    device: torch.device,
    marks: Dict[str, float],
) -> float:
    data = bench_model.samples(batch)
    _synchronize(device)
    begin = marks['begins'] = time.perf_counter()
    trainer.iterate(data, seed)
    _synchronize(device)
    return time.perf_counter() - begin


def counted(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: int) -> Dict[str, Any]:
    """Run one iteration and count its operators and host synchronisations."""
    bench_counts.mark_step_counts(trainer.runner.optim_wrapper.optimizer)
    data = bench_model.samples(batch)
    bench_counts.mark_host([data['inputs'], [sample.gt_sem_seg.data for sample in data['data_samples']]])
    with bench_counts.counting() as counts:
        trainer.iterate(data, seed)
    return counts.as_dict()


def measured_memory(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: int) -> Dict[str, int]:
    """Run one iteration and return its peak memory; an earlier one has made the optimizer's state."""
    data = bench_model.samples(batch)
    return peak_memory.peak(device_of(trainer).type, lambda: trainer.iterate(data, seed))


def traced(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: int, path: str) -> str:
    """Run one iteration under the profiler of the device and write its trace.

    Returns:
        Path of the file, or of the folder that torch_npu makes.
    """
    device = device_of(trainer).type
    data = bench_model.samples(batch)
    if device == 'npu':
        import torch_npu

        handler = torch_npu.profiler.tensorboard_trace_handler(str(Path(path).with_suffix('')))
        with torch_npu.profiler.profile(on_trace_ready=handler):
            trainer.iterate(data, seed)
        return str(Path(path).with_suffix(''))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        trainer.iterate(data, seed)
    profile.export_chrome_trace(path)
    return path
