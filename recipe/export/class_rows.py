"""Carries the class embedding of a Mask2Former over to a model with other classes, row by row.

The class embedding is a linear layer with a row for each class and a last one for "no object".
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor

from recipe.core import console, json_files

EMBEDDING = ('decode_head.cls_embed.weight', 'decode_head.cls_embed.bias')
SAME_NAMES = 'names'  # value of --class_map that maps each class to the one of its name
_SHOWN = 30


class Carried(NamedTuple):
    """A class embedding for the new classes.

    Attributes:
        weights: Its tensors by name.
        taken: New classes with rows from the old embedding.
        anew: New classes with rows drawn anew.
    """

    weights: Dict[str, Tensor]
    taken: List[str]
    anew: List[str]

    def __str__(self) -> str:
        rows = f'class embedding: rows taken for {", ".join([*self.taken, "no object"])}'
        return rows + (f'; made anew for {", ".join(self.anew)}' if self.anew else '')


def unnamed(count: int) -> List[str]:
    """Names of classes that have none, as in the data sets with another number of classes than Cityscapes."""
    return [f'class {number}' for number in range(count)]


def names_of_file(classes: Optional[List[str]], count: int) -> List[str]:
    """Names of the classes of a file.

    Args:
        classes: Those that it names itself; None if it names none.
        count: Number of its classes. 19 without names are Cityscapes'.
    """
    if classes is not None and len(classes) == count:
        return classes
    from mmseg.datasets import CityscapesDataset

    cityscapes = list(CityscapesDataset.METAINFO['classes'])
    return cityscapes if count == len(cityscapes) else unnamed(count)


def names_of_config(config: Any, count: int) -> List[str]:
    """Names of the classes of a training.

    Args:
        config: ``mmengine.Config``.
        count: Number of classes of its model.
    """
    from mmseg.registry import DATASETS

    from recipe.predict.trained_model import dataset_of

    data_set = dataset_of(config.get('train_dataloader'))
    while data_set.get('datasets'):  # joined data sets
        data_set = dataset_of({'dataset': data_set['datasets'][0]})
    kind = DATASETS.get(data_set.get('type')) if isinstance(data_set.get('type'), str) else data_set.get('type')
    for facts in (data_set.get('metainfo'), getattr(kind, 'METAINFO', None)):
        names = (facts or {}).get('classes')
        if isinstance(names, (list, tuple)) and len(names) == count:
            return list(map(str, names))
    return unnamed(count)


def read_map(given: str, path: Optional[Path], old: List[str], new: List[str]) -> Dict[str, str]:
    """Read which old class each row of a new class comes from.

    Args:
        given: Value of ``--class_map``: ``names``, or a JSON file.
        path: The file; None for ``names``.
        old: Names of the classes of the weights.
        new: Names of the classes of the training.

    Returns:
        New class by old class.

    Raises:
        console.UserError: The file cannot be read, or names a class that does not exist.
    """
    if path is None:
        found = {name: name for name in old if name in new}
        if not found:
            raise console.UserError(
                f'--class_map={given}: no class of the weights ({_listed(old)}) has the name of one of the training '
                f'({_listed(new)})',
                'give a file that maps names to names, or leave it out',
            )
        return found
    example = f'give names to names, such as {{"{old[0]}": "{new[0]}"}}'
    try:
        found = json_files.read(path, dict)
    except (OSError, json_files.JsonError) as error:
        raise console.UserError(f'--class_map: {path} cannot be read: {console.reason(error)}', example) from None
    if not found or not all(isinstance(name, str) for pair in found.items() for name in pair):
        raise console.UserError(f'--class_map: {path} does not map names to names', example)
    for names, known, whose in ((found, old, 'weights'), (found.values(), new, 'training')):
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean {close[0]!r}? The' if close else 'the'
                raise console.UserError(
                    f'--class_map: {path}: the {whose} {"have" if whose == "weights" else "has"} no class {name!r}',
                    f'{hint} classes are {_listed(known)}',
                )
    return found


def _listed(names: List[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def count(weights: Mapping[str, Tensor]) -> Optional[int]:
    """Number of classes of a class embedding; None if there is none or its tensors do not fit each other."""
    weight, bias = (weights.get(name) for name in EMBEDDING)
    if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1] or len(bias) < 2:
        return None
    return len(bias) - 1


def carry(
    weights: Mapping[str, Tensor],
    old: List[str],
    new: List[str],
    class_map: Optional[Mapping[str, str]],
    seed: Optional[int],
) -> Carried:
    """Make the class embedding for the new classes.

    The row of "no object" is always taken. The row of a new class is the mean of the rows of the old classes that the
    map leads to it. A new class without one gets a row as ``torch.nn.Linear`` draws it: uniform up to 1 / sqrt(width).

    Args:
        weights: Holds the old embedding, for which ``count`` is not None.
        old: Names of the old classes.
        new: Names of the new classes.
        class_map: New class by old class; None maps none.
        seed: Seed of the rows that are drawn; None draws without one.
    """
    sources: Dict[str, List[int]] = {name: [] for name in new}
    for name, target in (class_map or {}).items():
        sources[target].append(old.index(name))
    drawn = torch.Generator()
    drawn.manual_seed(seed) if seed is not None else drawn.seed()
    bound = 1 / math.sqrt(weights[EMBEDDING[0]].shape[1])
    made: Dict[str, Tensor] = {}
    for tensor in EMBEDDING:
        before = weights[tensor]
        rows = before.new_empty(len(new) + 1, *before.shape[1:]).uniform_(-bound, bound, generator=drawn)
        for row, name in enumerate(new):
            if sources[name]:
                rows[row] = before[sources[name]].mean(0)
        rows[-1] = before[-1]
        made[tensor] = rows
    return Carried(made, [name for name in new if sources[name]], [name for name in new if not sources[name]])
