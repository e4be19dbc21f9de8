"""The folder of an evaluation: predictions of one checkpoint with one set of options, and what was found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.core import console, files, inputs, json_files, run_folder, run_lock

IDENTITY = 'evaluation.json'
_CASE = 'evaluate_8p'
# Files of a start that was stopped before it wrote the identity.
_EARLY = {run_folder.LAUNCHER_LOG, run_lock.NAME, run_folder.NODES}


def choose(identity: Dict[str, Any], name: str, work_dir: Optional[str]) -> Path:
    """The folder of an evaluation: the same one for the same identity, so that an interrupted one goes on.

    Args:
        identity: All that decides what is predicted.
        name: Of the checkpoint, for people.
        work_dir: Value of ``--work_dir``.

    Returns:
        An absolute path, which may not exist.

    Raises:
        console.UserError: The folder holds something else, or cannot be written to.
    """
    if work_dir is not None:
        folder = inputs.absolute(work_dir)
    else:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        folder = run_folder.OUTPUT / _CASE / f'{name}_{identity["split"]}{"_tta" * identity["tta"]}_{digest}'
    run_folder.require_writable(folder)
    require_same(folder, identity)
    return folder


def require_same(folder: Path, identity: Dict[str, Any]) -> None:
    """Check that a folder is empty, or holds this evaluation.

    Raises:
        console.UserError: It does not; says where they differ.
    """
    if not folder.is_dir():
        return
    path = folder / IDENTITY
    try:
        known = json_files.read(path, dict)
    except FileNotFoundError:
        names = [one.name for one in folder.iterdir() if not one.name.startswith(files.PARTIAL_PREFIX)]
        others = sorted({*names} - _EARLY)
        if others:
            raise console.UserError(
                f'--work_dir: {folder} holds other files, such as {others[0]}', 'give a new or an empty folder'
            ) from None
        return
    except (OSError, json_files.JsonError) as error:
        fix = 'remove the folder, or give another --work_dir'
        raise console.UserError(f'{path} cannot be read: {console.reason(error)}', fix) from None
    differences = [
        f'{key}: {known.get(key)} there, {identity.get(key)} now'
        for key in sorted({*known, *identity})
        if known.get(key) != identity.get(key)
    ]
    if differences:
        raise console.UserError(
            f'--work_dir: {folder} holds the evaluation of something else ({"; ".join(differences)})',
            'give another --work_dir, or the same options',
        )


def claim(folder: Path, identity: Dict[str, Any]) -> None:
    """Write the identity into the folder."""
    files.write_text(folder / IDENTITY, json.dumps(identity, indent=2) + '\n')
