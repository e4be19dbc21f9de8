"""Training samples per second and core: upstream's pipeline, ours, and ours with the decoded cache.

``bench.py loader`` runs it. Each side is the pipeline of the recipe's own config file, with one thread, on the same
pictures and random numbers. The sides take turns; one turn of each is a round.
Each timed sample is also compared: ours must equal upstream's.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core import console
from recipe.data import layout
from recipe.engine import size

CONFIG = 'mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py'
UPSTREAM, PNG, CACHE = 'upstream', 'ours', 'ours, decoded cache'
_SCENES = (8, 1, 2048, 1024, 0)  # the generated set: train, val, width, height, seed


@dataclasses.dataclass(frozen=True)
class LoaderFigures:
    """Figures of one side.

    Attributes:
        side: ``UPSTREAM``, ``PNG`` or ``CACHE``.
        samples: Samples timed, all rounds together.
        cpu_ms: Milliseconds of processor time per sample: mean of each round, median of the rounds.
        cpu_ms_rounds: Mean of each round.
        wall_ms: Milliseconds of elapsed time per sample, median of the rounds' means.
        samples_per_core_s: Samples that one core loads in a second, from ``cpu_ms``.
        speedup: Against upstream, from ``cpu_ms``.
        cores_per_card: Cores that load ``images_per_s`` images in a second.
        workers_per_card: Loader processes for that, each busy for at most 80 % of its time.
    """

    side: str
    samples: int
    cpu_ms: float
    cpu_ms_rounds: Tuple[float, ...]
    wall_ms: float
    samples_per_core_s: float
    speedup: float
    cores_per_card: float
    workers_per_card: int


@dataclasses.dataclass(frozen=True)
class LoaderReport:
    """A comparison.

    Attributes:
        figures: One for each side, upstream first.
        pictures: How many different pictures were loaded.
        png_mb: Mean size of a picture's file in megabytes.
        decoder: Decoder of PNG files on our side.
        images_per_s: Images that a card trains on in a second.
    """

    figures: List[LoaderFigures]
    pictures: int
    png_mb: float
    decoder: str
    images_per_s: float


def measure(
    data_root: Path,
    cache: Optional[Path] = None,
    samples: int = 32,
    rounds: int = 3,
    seed: int = 0,
    images_per_s: float = 100,
) -> LoaderReport:
    """Measure the loading of training samples.

    Args:
        data_root: Cityscapes root with labelTrainIds.
        cache: Decoded cache of it, from ``cityscapes.py cache``; None leaves that side out.
        samples: Samples in a round.
        rounds: Number of timed rounds.
        seed: Seed of the random numbers.
        images_per_s: Images that a card trains on in a second.

    Raises:
        console.UserError: No pictures, or our samples differ from upstream's.
    """
    pairs = _pairs(data_root)
    sides: Dict[str, Optional[Dict[str, str]]] = {UPSTREAM: None, PNG: None}
    if cache is not None:
        sides[CACHE] = {'folder': str(cache), 'data_root': str(data_root)}
    times: Dict[str, List[Dict[str, Any]]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, decoded in sides.items():
            taken = load_samples(name != UPSTREAM, decoded, pairs, samples, seed + index)
            if taken['digest'] != (times[UPSTREAM] or [taken])[-1]['digest'] and name != UPSTREAM:
                raise console.UserError(f"{name}: the samples are not those of upstream's pipeline")
            times[name].append(taken)
    # The first round warms up.
    figures = [_figures(name, taken[1:], times[UPSTREAM][1:], images_per_s) for name, taken in times.items()]
    mean_bytes = statistics.mean(Path(image).stat().st_size for image, _ in pairs)
    return LoaderReport(figures, len(pairs), mean_bytes / 1e6, decoder_name(), images_per_s)


def _figures(
    name: str, taken: List[Dict[str, Any]], upstream: List[Dict[str, Any]], images_per_s: float
) -> LoaderFigures:
    cpu = [one['cpu_s'] / one['samples'] * 1e3 for one in taken]
    base = statistics.median(one['cpu_s'] / one['samples'] * 1e3 for one in upstream)
    middle = statistics.median(cpu)
    wall = statistics.median(one['wall_s'] / one['samples'] * 1e3 for one in taken)
    return LoaderFigures(
        side=name,
        samples=sum(one['samples'] for one in taken),
        cpu_ms=middle,
        cpu_ms_rounds=tuple(cpu),
        wall_ms=wall,
        samples_per_core_s=1e3 / middle,
        speedup=base / middle,
        cores_per_card=images_per_s * middle / 1e3,
        workers_per_card=size.loader_processes(images_per_s, middle / 1e3),
    )


def _pairs(data_root: Path) -> List[Tuple[str, str]]:
    """Training pictures and their labels."""
    images = layout.stems(data_root / layout.IMAGES / 'train', layout.IMAGE_SUFFIX)
    labels = layout.stems(data_root / layout.LABELS / 'train', layout.TRAIN_IDS_SUFFIX)
    pairs = [(images[stem], labels[stem]) for stem in sorted(images) if stem in labels]
    if not pairs:
        raise console.UserError(f'{data_root} has no training pictures with labelTrainIds', 'run cityscapes.py prepare')
    return pairs[:64]  # more pictures would measure only the disk


def load_samples(
    fast: bool, decoded: Optional[Dict[str, str]], pairs: List[Tuple[str, str]], count: int, seed: int
) -> Dict[str, Any]:
    """Load samples with the training pipeline of the recipe.

    Args:
        fast: Whether to use the pipeline that ``equip()`` makes from upstream's.
        decoded: Decoded cache to use.
        pairs: Pictures and labels.
        count: How many samples.
        seed: Seed of the random numbers.

    Returns:
        ``cpu_s`` and ``wall_s`` of all samples in seconds, ``samples``, and a ``digest`` of their content.
    """
    import hashlib

    import cv2
    import mmseg.datasets  # registers the transforms
    import numpy as np
    import torch
    from mmcv.transforms import Compose
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from recipe.engine import components, equip  # noqa: F401  registers the transforms

    init_default_scope('mmseg')
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    folder = Path(mmseg.datasets.__file__).resolve().parents[2] / 'configs' / 'mask2former'
    steps = Config.fromfile(str(folder / CONFIG)).train_dataloader.dataset.pipeline
    if fast:
        steps = equip.fast_pipeline(steps, 'uint8')
    if decoded:
        steps[0]['decoded_cache'] = decoded
    pipeline, digest = Compose(steps), hashlib.sha256()
    cpu_s = wall_s = 0.0
    for index in range(count):
        np.random.seed((seed * count + index) % 2**32)
        image, label = pairs[(seed * count + index) % len(pairs)]
        cpu, wall = time.process_time(), time.perf_counter()
        sample = pipeline(
            dict(img_path=image, seg_map_path=label, seg_fields=[], reduce_zero_label=False, label_map=None)
        )
        cpu_s += time.process_time() - cpu
        wall_s += time.perf_counter() - wall
        digest.update(sample['inputs'].numpy().tobytes())
        digest.update(sample['data_samples'].gt_sem_seg.data.numpy().astype(np.uint8).tobytes())
    return {'cpu_s': cpu_s, 'wall_s': wall_s, 'samples': count, 'digest': digest.hexdigest()}


def decoder_name() -> str:
    """Name of the decoder of PNG files on our side."""
    from importlib import metadata

    from recipe.data.transforms import png

    if png.decode_image_png_u8 is None:
        return 'OpenCV and Pillow'
    return f'kornia-rs {metadata.version("kornia-rs")}'


def drawn_scenes(folder: Path) -> Tuple[Path, Path]:
    """Make a few street scenes of 2048 x 1024 and a decoded cache of them; returns both folders.

    Args:
        folder: An empty folder.
    """
    from recipe.data import cache as cityscapes_cache
    from recipe.data import demo, prepare

    root, cache = folder / 'data', folder / 'cache'
    demo.demo(root, demo.DemoSet(*_SCENES))
    prepare.prepare(root)
    cityscapes_cache.build(root, cache)
    return root, cache


def show(report: LoaderReport) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f'{report.pictures} pictures, {report.png_mb:.1f} MB each; PNG decoder of ours: {report.decoder}'
    )
    wanted = f'for {report.images_per_s:g} images/s a card'
    headings = ('pipeline', 'CPU ms/sample', 'rounds', 'wall ms', 'samples/s per core', 'speed-up')
    for heading in (*headings, f'cores {wanted}', f'num_workers {wanted}'):
        table.add_column(heading, justify='left' if heading == 'pipeline' else 'right')
    for one in report.figures:
        spread = f'{min(one.cpu_ms_rounds):.1f} - {max(one.cpu_ms_rounds):.1f}'
        table.add_row(
            one.side,
            f'{one.cpu_ms:.1f}',
            spread,
            f'{one.wall_ms:.1f}',
            f'{one.samples_per_core_s:.1f}',
            f'{one.speedup:.1f} x',
            f'{one.cores_per_card:.1f}',
            str(one.workers_per_card),
        )
    Console(width=120).print(table)
