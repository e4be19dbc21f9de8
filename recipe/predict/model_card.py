"""The model card of a published model, in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from recipe.core import config_text, console, json_files
from recipe.data.training_data import DEMO_DATA
from recipe.predict.trained_model import TrainedModel, dataset_of

# Figures of the validation of a checkpoint, in result.json's ``validations``.
_OF_VALIDATION = {
    'miou_percent': 'Mean IoU in percent, over the classes that occur.',
    'macc_percent': 'Mean class accuracy in percent.',
    'aacc_percent': 'Accuracy over all pixels in percent.',
}
_OF_RUN = ('miou_best_percent', 'loss_final', 'fps_images_per_s', 'step_time_p50_s', 'e2e_duration_s')
_SETTINGS = (
    'model.decode_head.num_queries',
    'model.decode_head.train_cfg.num_points',
    'optim_wrapper.type',
    'optim_wrapper.optimizer.type',
    'optim_wrapper.optimizer.lr',
    'optim_wrapper.optimizer.weight_decay',
    'train_cfg.max_iters',
    'fast',
)
_CITYSCAPES_TERMS = (
    'Cityscapes is free for non-commercial use only: research, teaching, scientific publications and personal '
    'experiments. Its terms (https://www.cityscapes-dataset.com/license/) apply to what is trained on it.'
)
_SWIN_TERMS = (
    'The weights of Swin Transformer are under the MIT licence; they were trained on ImageNet, whose images are for '
    'non-commercial research and education.'
)


class Figures(NamedTuple):
    """Figures of a run and of one of its checkpoints.

    Attributes:
        result: Content of result.json.
        validation: Figures of the checkpoint's validation.
        iteration: Iteration of the checkpoint.
    """

    result: Dict[str, Any]
    validation: Dict[str, Any]
    iteration: int


def read_result(checkpoint: Path) -> Dict[str, Any]:
    """Read result.json beside a checkpoint.

    Raises:
        console.UserError: It is not there, or lacks what a card needs.
    """
    path = checkpoint.with_name('result.json')
    again = f'make it: python tools/metrics.py {checkpoint.parent}'
    try:
        result = json_files.read(path, dict)
    except FileNotFoundError:
        raise console.UserError(f'there is no {path}, which has the figures for the model card', again) from None
    except (OSError, ValueError) as error:
        raise console.UserError(f'{path} cannot be read: {console.reason(error)}', again) from None
    needed = {'definition': dict, 'versions': dict, 'validations': list, **dict.fromkeys(_OF_RUN, object)}
    wrong = [name for name, kind in needed.items() if name not in result or not isinstance(result[name], kind)]
    if wrong:
        raise console.UserError(f'{path} has no {wrong[0]}', again)
    return result


def figures_of(result: Dict[str, Any], checkpoint: Path, meta: Dict[str, Any]) -> Figures:
    """The figures of a checkpoint.

    Args:
        result: From ``read_result``.
        checkpoint: Its file.
        meta: Its ``meta``.

    Raises:
        console.UserError: There are none.
    """
    iteration = meta.get('iter')
    for validation in reversed(result['validations']):
        if isinstance(iteration, int) and isinstance(validation, dict) and validation.get('iter') == iteration:
            return Figures(result, validation, iteration)
    raise console.UserError(
        f'result.json beside {checkpoint} has no validation of iteration {iteration}, which the checkpoint is of',
        'publish a checkpoint that was validated, such as the best one',
    )


def parts(trained: TrainedModel) -> List[str]:
    """Head, backbone, data set and iteration of a model: ``Mask2Former``, ``Swin``, ``Cityscapes``, ``iter500``."""
    model = trained.config.model
    head = model.get('decode_head') or {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    names = [
        _short(head.get('type'), 'Head'),
        _short((model.get('backbone') or {}).get('type'), 'Transformer'),
        _data_name(dataset_of(trained.config.get('train_dataloader'))),
        f'iter{trained.meta["iter"]}' if 'iter' in trained.meta else '',
    ]
    return [name for name in names if name] or ['model']


def _data_name(dataset: Dict[str, Any]) -> str:
    """Name of a data set: that of its class, or with a dataset.json that of its folder."""
    name = _short(dataset.get('type'), 'Dataset')
    return re.sub(r'[^\w-]+', '-', Path(str(dataset.get('data_root'))).name) if name == 'File' else name


def _short(kind: Any, suffix: str) -> str:
    name = str(kind or '').rpartition('.')[2]
    return name[: -len(suffix)] if name.endswith(suffix) and name != suffix else name


def text(trained: TrainedModel, figures: Figures, name: str, digest: str, licence: Optional[str]) -> str:
    """The model card.

    Args:
        trained: The model.
        figures: From ``read_figures``.
        name: Name of the published file.
        digest: Its sha256.
        licence: Licence of the weights; None: whoever publishes them has not said.
    """
    return '\n'.join(_lines(trained, figures, name, digest, licence)) + '\n'


def _lines(trained: TrainedModel, figures: Figures, name: str, digest: str, licence: Optional[str]) -> Iterator[str]:
    config = config_text.read_config(trained.config_text)  # all of it, with the source of its first weights
    result, head = figures.result, parts(trained)
    parameters = sum(one.numel() for one in trained.model.parameters())
    yield f'# {name}\n'
    yield (
        f'Semantic segmentation: {" with ".join(head[:2])}, {parameters / 1e6:.1f} M parameters, '
        f'{trained.num_classes} classes, after iteration {figures.iteration}.\n'
    )
    yield '```python\nfrom recipe import load\n'
    yield f"segment = load('{name}')\nlabels = segment('street.png')  # array (H, W), uint8\n```\n"
    yield f'sha256: `{digest}`\n'
    yield '## Figures\n\n| figure | value | definition |\n| --- | --- | --- |'
    for key, definition in _OF_VALIDATION.items():
        if figures.validation.get(key) is not None:
            yield f'| {key} | {figures.validation[key]} | {definition} Validation of iteration {figures.iteration}. |'
    for key in _OF_RUN:
        if result[key] is not None:
            yield f'| {key} (whole training) | {_number(result[key])} | {_cell(result["definition"].get(key, ""))} |'
    ious = figures.validation.get('class_iou_percent') or {}
    if ious:
        yield '\n| class | IoU in percent |\n| --- | --- |'
        yield from (f'| {_cell(one)} | {"does not occur" if iou is None else iou} |' for one, iou in ious.items())
    yield '\n## Data\n'
    yield from _data_lines(config)
    yield f'- Classes: {", ".join(trained.classes)}.'
    yield '\n## Training\n\n| setting | value |\n| --- | --- |'
    for key in _SETTINGS:
        value = config_text.lookup(config, key)
        if value is not None:
            yield f'| {key} | {_cell(value)} |'
    for key in ('world_size', 'batch_size_per_card', 'global_batch', 'device', 'starts'):
        yield f'| {key} | {_cell(result.get(key))} |'
    yield f'| seed | {_cell(_seed(config, trained))} |'
    yield f'| first weights of the backbone | {_cell(_first_weights(config) or "none, trained from scratch")} |'
    yield '\n## Versions\n\n| package | version |\n| --- | --- |'
    for key, version in sorted(result['versions'].items()):
        for part, value in version.items() if isinstance(version, dict) else ((key, version),):
            stated = f'{value.get("base")}, patched: {value.get("head")}' if isinstance(value, dict) else value
            yield f'| {_cell(part)} | {_cell(stated)} |'
    yield '\n## Licences\n'
    yield f'- These weights: {licence or "not stated; ask who published them. The terms below bind them as well."}'
    yield '- Code: Apache-2.0, the recipe and OpenMMLab.'
    yield from _licence_lines(config)
    yield f'\n## Config\n\n```python\n{trained.config_text.strip()}\n```'


def _data_lines(config: Dict[str, Any]) -> Iterator[str]:
    for split in ('train', 'val'):
        node = dataset_of(config.get(f'{split}_dataloader'))
        if node:
            split_of = node.get('split') or {}  # of a dataset.json
            folders = node.get('data_prefix') or {key: split_of.get(key) for key in ('images', 'labels')}
            prefix = ', '.join(f'`{one}`' for one in folders.values())
            kind = "the recipe's demo scenes, read as " if _is_demo(config) else ''
            yield f'- {split}: {kind}{node.get("type")}, {prefix}'


def _is_demo(config: Dict[str, Any]) -> bool:
    root = str(dataset_of(config.get('train_dataloader')).get('data_root'))
    return DEMO_DATA.name in Path(root).parts or Path(root, 'demo.json').is_file()


def _licence_lines(config: Dict[str, Any]) -> Iterator[str]:
    kind = str(dataset_of(config.get('train_dataloader')).get('type'))
    if _is_demo(config):
        yield '- Data: scenes drawn by this recipe, Apache-2.0.'
    elif 'Cityscapes' in kind:
        yield f'- Data: {_CITYSCAPES_TERMS}'
    else:
        yield f'- Data: the terms of the data set of {kind}.'
    first = _first_weights(config)
    if first:
        yield f'- First weights: {_SWIN_TERMS if first.startswith("swin") else f"those of {first}."}'


def _first_weights(config: Dict[str, Any]) -> Optional[str]:
    """Name of the file that the backbone began from, None if it began from scratch."""
    source = config_text.lookup(config, 'model.backbone.init_cfg.checkpoint')
    return str(source).rpartition('/')[2] if source else None


def _seed(config: Dict[str, Any], trained: TrainedModel) -> Any:
    asked = config_text.lookup(config, 'randomness.seed')
    return trained.meta.get('seed', 'not recorded') if asked is None else asked


def _number(value: Any) -> str:
    return f'{value:.6g}' if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    """A value as the cell of a table."""
    return str(value).replace('|', '\\|').replace('\n', ' ')
