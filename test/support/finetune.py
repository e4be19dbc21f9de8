"""Fine-tuning of the demo from 19 classes to Cityscapes' seven categories, against training from scratch.

    python test/support/finetune.py CHECKPOINT DATA OUT --seeds 0 1 2 --max_iters 100

CHECKPOINT is a trained demo, DATA the set that it was trained on. Each seed trains three times: from scratch, from the
checkpoint, and from the checkpoint with a class map. Prints the mIoU of each training; OUT keeps the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Dict, List

import numpy as np
from PIL import Image

from recipe.core.paths import ROOT
from recipe.evaluate import classes

SUFFIX = '_gtFine_labelTrainIds.png'


def table() -> np.ndarray:
    """The category of each train id, uint8; 255 stays 255."""
    found = np.full(256, classes.IGNORED, np.uint8)
    for number, train_ids in enumerate(classes.CATEGORIES.values()):
        found[train_ids] = number
    return found


def seven_classes(data: Path, out: Path) -> Path:
    """A copy of a data set in Cityscapes' layout whose labels are the seven categories; pictures are links."""
    categories = table()
    for picture in sorted((data / 'leftImg8bit').rglob('*_leftImg8bit.png')):
        place = picture.relative_to(data / 'leftImg8bit')
        link = out / 'leftImg8bit' / place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(picture.resolve())
        labels = Path(str(place).replace('_leftImg8bit.png', SUFFIX))
        target = out / 'gtFine' / labels
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(categories[np.asarray(Image.open(data / 'gtFine' / labels))]).save(target)
    return out


def class_map() -> Dict[str, str]:
    """Each class and its category, which a data set without names calls by its number."""
    categories = table()
    return {name: f'class {categories[train_id]}' for train_id, name in enumerate(classes.NAMES)}


def options(kind: str, checkpoint: Path, out: Path) -> List[str]:
    """The options of the launcher for ``scratch``, ``rows anew`` or ``class map``."""
    if kind == 'scratch':
        return []
    path = out / 'class_map.json'
    path.write_text(json.dumps(class_map(), indent=1) + '\n')
    return [f'--init_from={checkpoint}', *([f'--class_map={path}'] if kind == 'class map' else [])]


KINDS = ('scratch', 'rows anew', 'class map')


def command(kind: str, checkpoint: Path, data: Path, out: Path, seed: int, max_iters: int) -> List[str]:
    """The launcher's command line of one training on one process."""
    return [
        *('--demo', f'--data_path={data}', f'--seed={seed}', f'--max_iters={max_iters}', f'--val_interval={max_iters}'),
        *(
            '--nproc=1',
            '--batch_size=4',
            '--num_workers=0',
            f'--work_dir={out / kind.replace(" ", "_")}_{seed}',
            '--doctor=0',
        ),
        *options(kind, checkpoint, out),
        *('--', 'model.decode_head.num_classes=7'),
    ]


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('checkpoint', 'data', 'out'):
        parser.add_argument(name, type=Path)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
    parser.add_argument('--max_iters', type=int, default=100)
    asked = parser.parse_args()
    out = asked.out.resolve()
    data = out / 'data'
    if not data.exists():
        seven_classes(asked.data, data)
    for seed in asked.seeds:
        for kind in asked.kinds:
            argv = command(kind, asked.checkpoint.resolve(), data, out, seed, asked.max_iters)
            run = out / f'{kind.replace(" ", "_")}_{seed}'
            with (out / f'{run.name}.log').open('w') as log:
                subprocess.run(
                    ['bash', str(ROOT / 'test' / 'train_full_8p.sh'), *argv], stdout=log, stderr=log, check=True
                )
            figures = json.loads((run / 'result.json').read_text())
            print(f'seed {seed}, {kind}: mIoU {figures["miou_last_percent"]:.2f} %', flush=True)


if __name__ == '__main__':
    main()
