"""Publishes the model of a run: its weights in a file with their hash in its name, and a model card.

    python tools/publish.py RUN --out published

The file holds the weights, the config and the classes, and nothing of the optimizer. ``recipe.load``, the launchers and
mmsegmentation load it. RUN is a run folder with result.json (its best checkpoint is taken), or a checkpoint in one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from recipe.core import console, files, imported_packages, inputs, run_folder

_HASH_DIGITS = 8  # as in OpenMMLab's names


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='publish.py', description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('run', metavar='RUN', help='run folder, or a checkpoint in one')
    add('--out', metavar='DIR', help='folder of the two files (default: RUN/published)')
    add('--name', help='beginning of their names (default: head, backbone, data set and iteration)')
    add('--licence', metavar='TEXT', help='licence of the weights, for the card')
    add('--force', action='store_true', help='overwrite files of these names')
    add('--trust_checkpoint', action='store_true', help='load the checkpoint even if it could run code')
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see the module's docstring."""
    asked = parse(argv)
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'
    if asked.name is not None and not re.fullmatch(r'[\w.+-]+', asked.name):
        raise console.UserError(f'--name: {asked.name} is no part of a file name', 'use letters, digits, _ . + -')
    imported_packages.require()
    from recipe.predict.trained_model import find_checkpoint

    path = find_checkpoint(asked.run)
    out = inputs.absolute(asked.out) if asked.out else path.parent / 'published'
    run_folder.require_writable(out, '--out')
    publish(path, out, asked.name, asked.licence, asked.force)


def publish(
    path: Path, out: Path, name: Optional[str] = None, licence: Optional[str] = None, force: bool = False
) -> Path:
    """Write the model and its card.

    Args:
        path: The checkpoint, in its run folder.
        out: Folder of the two files.
        name: Beginning of their names.
        licence: Licence of the weights.
        force: Overwrite files of these names.

    Returns:
        The model. The card has the same name and ends with ``.md``.

    Raises:
        console.UserError: The checkpoint cannot be loaded, or result.json lacks its figures.
    """
    from recipe.predict import model_card
    from recipe.predict.trained_model import TrainedModel, load_trained_model

    result = model_card.read_result(path)
    trained: TrainedModel = load_trained_model(path, 'cpu')
    figures = model_card.figures_of(result, path, trained.meta)
    content = _serialized(trained)
    digest = hashlib.sha256(content).hexdigest()
    model = out / f'{name or _default_name(trained)}-{digest[:_HASH_DIGITS]}.pth'
    card = model.with_suffix('.md')
    for file in (model, card):
        if os.path.lexists(file) and not force:
            raise console.UserError(f'--out: {file} is there already', 'give another --out, or --force')
    text = model_card.text(trained, figures, model.name, digest, licence)
    out.mkdir(parents=True, exist_ok=True)
    with files.whole(model, lambda written: _require_loadable(written)) as partial:
        partial.write_bytes(content)
    files.write_text(card, text)
    console.say(f'{model}: {len(content) / 1e6:.1f} MB, of {path.name}; its card: {card.name}')
    return model


def _serialized(trained: Any) -> bytes:
    """The published checkpoint; the same bytes each time."""
    import torch

    kept = {key: trained.meta[key] for key in ('iter', 'epoch', 'seed', 'mmengine_version') if key in trained.meta}
    names = {'classes': list(trained.classes), 'palette': trained.palette.tolist()}
    content: Dict[str, Any] = {
        'meta': {**kept, 'cfg': trained.config_text, 'dataset_meta': names},
        'state_dict': {key: value.clone() for key, value in trained.model.state_dict().items()},
    }
    written = io.BytesIO()  # a name would be part of the content
    torch.save(content, written)
    return written.getvalue()


def _default_name(trained: Any) -> str:
    from recipe.predict import model_card

    return re.sub(r'[^\w.+-]+', '-', '_'.join(model_card.parts(trained)).lower())


def _require_loadable(written: str) -> None:
    from recipe.predict.trained_model import load_trained_model

    load_trained_model(written, 'cpu')
