"""Checks the data sets of a config that are not in Cityscapes' layout, such as ADE20K, before a rank starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

from recipe.core import console
from recipe.data import layout

_SPLITS = {'train_dataloader': 'train', 'val_dataloader': 'val'}


def are_in(config: Any) -> bool:
    """Whether a config trains or validates on a data set in another layout than Cityscapes'."""
    return any(
        not str((group.get('data_prefix') or {}).get('img_path', layout.IMAGES)).startswith(layout.IMAGES)
        for _, group in _groups(config)
    )


def verified(config: Any) -> str:
    """Check that each picture of the data sets has its label map.

    Args:
        config: ``mmengine.Config`` whose data sets have their roots.

    Returns:
        A summary, one line.

    Raises:
        console.UserError: A folder or a label map is missing, or there are no pictures; names it.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope(config.get('default_scope', 'mmseg'))
    counts: Dict[str, int] = {}
    for split, group in _groups(config):
        kind, root = group.get('type'), group['data_root']
        fix = f'give --data_path=DIR, the folder of {kind} as mmsegmentation lays it out'
        try:
            found = DATASETS.build({**group, 'pipeline': [], 'serialize_data': False})
        except Exception as error:  # data sets raise many kinds of errors for missing files
            reason = f'{type(error).__name__}: {error}'
            raise console.UserError(
                f'--data_path: {root} does not hold the {split} split of {kind}: {reason}', fix
            ) from None
        for number in range(len(found)):
            facts = found.get_data_info(number)
            for name in ('img_path', 'seg_map_path'):
                if not Path(str(facts.get(name))).is_file():
                    raise console.UserError(f'--data_path: there is no file {facts.get(name)} ({split} split)', fix)
        if not len(found):
            raise console.UserError(f'--data_path: {root} holds no pictures of the {split} split of {kind}', fix)
        counts[split] = counts.get(split, 0) + len(found)
    return f'{", ".join(f"{split} {count} pairs" for split, count in counts.items())}; their content is not checked'


def _groups(config: Any) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The data sets of a config with a root, and their splits."""
    for name, split in _SPLITS.items():
        pending = [config.get(name)]
        for node in pending:
            if isinstance(node, dict):
                if 'data_root' in node:
                    yield split, node
                pending += list(node.values())
            elif isinstance(node, list):
                pending += node
