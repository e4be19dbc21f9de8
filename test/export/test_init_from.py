"""``--init_from`` begins a training from any Mask2Former; what does not fit is named, and another model is refused."""

from __future__ import annotations

import csv
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmengine.runner import load_checkpoint

import evil_checkpoints
from random_mask2former import SMALL
from recipe.bench import model as bench_model
from recipe.core import console, run_folder
from recipe.core.paths import ROOT
from recipe.core.run_options import Options
from recipe.engine import backbones, starting_weights
from recipe.engine import config as run_config
from recipe.evaluate import classes as cityscapes
from recipe.export import class_rows, cli, huggingface, names
from recipe.launch import checks, options
from recipe.launch import cli as launcher
from recipe.launch.plan import Plan

SEVEN = {'decode_head.num_classes': 7, 'decode_head.loss_cls.class_weight': [1.0] * 8}
CATEGORIES = ['flat', 'construction', 'object', 'nature', 'sky', 'human', 'vehicle']
EMBEDDING = class_rows.EMBEDDING


def plan_for(source: Path, folder: Path, overrides: Any = None, classes: Any = None, **given: Any) -> Plan:
    """A plan as far as the check of the weights needs it, with the small model."""
    config = run_config.load(ROOT / bench_model.DEMO)
    config.merge_from_dict({f'model.{key}': value for key, value in {**SMALL, **(overrides or {})}.items()})
    if classes is not None:
        config.train_dataloader.dataset.metainfo = dict(classes=classes)
    return Plan(
        Options('full', init_from=str(source), **given),
        config=config,
        folder=folder,
        model=run_config.build_model(config),
    )


def begun(plan: Plan) -> Dict[str, torch.Tensor]:
    """The weights with which the ranks begin, as mmengine loads them."""
    list(checks._weights(plan))
    if plan.initial_weights is not None:
        launcher._write_initial_weights(plan)
    with torch.no_grad():
        for parameter in plan.model.parameters():
            parameter.zero_()
    load_checkpoint(plan.model, plan.config['load_from'], map_location='cpu')
    return plan.model.state_dict()


@pytest.fixture
def sources(model, checkpoint, facebook, tmp_path) -> Dict[str, Path]:
    """The same model in all its forms."""
    from safetensors.torch import save_file

    save_file(model.state_dict(), str(tmp_path / 'model.safetensors'))
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps({n: v.numpy() for n, v in model.state_dict().items()}))
    theirs = {f'module.{n}': v for n, v in names.to_foreign(model.state_dict(), names.FACEBOOK).items()}
    torch.save({'model': theirs, 'iteration': 7}, tmp_path / 'model_final.pth')
    (tmp_path / 'hf').mkdir()
    huggingface.write(type('Trained', (), {'model': model, 'classes': tuple(cityscapes.NAMES)}), tmp_path / 'hf', None)
    return {
        'checkpoint': checkpoint,
        'facebook': facebook,
        'facebook in training': tmp_path / 'model_final.pth',
        'hugging face': tmp_path / 'hf',
        'safetensors': tmp_path / 'model.safetensors',
        'plain pickle': tmp_path / 'plain.pkl',
    }


def test_begins_from_every_form(model, sources, tmp_path, capsys):
    for kind, source in sources.items():
        plan = plan_for(source, tmp_path)
        weights = begun(plan)
        assert all(torch.equal(weights[name], value) for name, value in model.named_parameters()), kind
        assert capsys.readouterr().err == ''
        assert (plan.initial_weights is None) == (kind == 'checkpoint')
    # A resumed run must not take the file for a checkpoint.
    assert not tmp_path.joinpath(run_folder.INITIAL_WEIGHTS).match(run_folder.CHECKPOINTS)


def test_what_does_not_fit_begins_from_scratch_and_is_named(model, facebook, tmp_path, capsys):
    weights = begun(plan_for(facebook, tmp_path, {'decode_head.num_queries': 7}))
    said = capsys.readouterr().err
    assert '--init_from: 2 of ' in said
    assert 'decode_head.query_embed.weight is (40, 128) there and (7, 128) in the model' in said
    assert not weights['decode_head.query_feat.weight'].any()
    assert torch.equal(weights['decode_head.cls_embed.weight'], model.decode_head.cls_embed.weight)


@pytest.mark.parametrize('kind', ['checkpoint', 'facebook', 'hugging face'])
def test_other_classes_get_rows_of_their_own_and_all_else_is_kept(model, sources, kind, tmp_path):
    weights, again = (begun(plan_for(sources[kind], tmp_path, SEVEN)) for _ in range(2))
    bound = 128**-0.5
    for name in EMBEDDING:
        before = model.state_dict()[name]
        assert torch.equal(weights[name][-1], before[-1]), 'the row of no object is always taken'
        assert torch.equal(weights[name], again[name]), 'the rows follow the seed of the config'
        assert 0 < weights[name][:-1].abs().max() <= bound
    others = [name for name, _ in model.named_parameters() if name not in EMBEDDING]
    assert all(torch.equal(weights[name], model.state_dict()[name]) for name in others)


def mapped(path: Path, class_map: Any) -> str:
    path.write_text(class_map if isinstance(class_map, str) else json.dumps(class_map))
    return str(path)


def test_a_class_map_carries_rows_over(model, facebook, tmp_path, capsys):
    """A file without names and with 19 classes is taken to know those of Cityscapes."""
    given = mapped(tmp_path / 'map.json', {'car': 'vehicle', 'truck': 'vehicle', 'sky': 'sky'})
    plan = plan_for(facebook, tmp_path, SEVEN, CATEGORIES, class_map=given)
    (finding,) = checks._weights(plan)
    assert finding.found.endswith(
        'class embedding: rows taken for sky, vehicle, no object; '
        'made anew for flat, construction, object, nature, human'
    )
    weights = begun(plan)
    old = model.state_dict()
    for name in EMBEDDING:
        assert torch.equal(weights[name][6], old[name][[13, 14]].mean(0)), 'the mean of car and truck'
        assert torch.equal(weights[name][4], old[name][10])
        assert torch.equal(weights[name][7], old[name][19])
    assert 'from scratch' not in capsys.readouterr().err


def test_classes_of_the_same_names_are_found(model, sources, tmp_path):
    names = ['bus', 'sidewalk', 'tree', 'road']
    overrides = {'decode_head.num_classes': 4, 'decode_head.loss_cls.class_weight': [1.0] * 5}
    weights = begun(plan_for(sources['facebook'], tmp_path, overrides, names, class_map='names'))
    old = model.state_dict()['decode_head.cls_embed.weight']
    assert torch.equal(weights['decode_head.cls_embed.weight'][[0, 1, 3]], old[[15, 1, 0]])
    with pytest.raises(console.UserError, match='--class_map=names: no class of the weights'):
        begun(plan_for(sources['facebook'], tmp_path, overrides, ['a', 'b', 'c', 'd'], class_map='names'))


def test_rows_of_as_many_classes_in_another_order(model, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    names = [f'kind {number}' for number in range(19)]
    content['meta']['dataset_meta'] = {'classes': tuple(names)}
    torch.save(content, tmp_path / 'named.pth')
    weights = begun(plan_for(tmp_path / 'named.pth', tmp_path, classes=names[::-1], class_map='names'))
    old = model.state_dict()['decode_head.cls_embed.bias']
    assert torch.equal(weights['decode_head.cls_embed.bias'], torch.cat([old[:-1].flip(0), old[-1:]]))
    assert 'other names' not in capsys.readouterr().err
    begun(plan_for(tmp_path / 'named.pth', tmp_path))  # Cityscapes' names
    assert 'its classes have other names (kind 0 there, road in the training)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('class_map', 'said'),
    [
        ({'cars': 'vehicle'}, "the weights have no class 'cars'; did you mean 'car'?"),
        ({'car': 'vehicles'}, "the training has no class 'vehicles'; did you mean 'vehicle'?"),
        ({'car': 6}, 'does not map names to names'),
        ({}, 'does not map names to names'),
        ('[]', 'holds a list'),
        ('{', 'cannot be read'),
    ],
)
def test_a_wrong_class_map_is_refused(class_map, said, facebook, tmp_path):
    given = mapped(tmp_path / 'map.json', class_map)
    with pytest.raises(console.UserError, match='--class_map') as caught:
        begun(plan_for(facebook, tmp_path, SEVEN, CATEGORIES, class_map=given))
    assert said in str(caught.value)
    assert str(tmp_path / 'map.json') in str(caught.value)


def test_the_table_says_what_becomes_of_each_tensor(model, facebook, tmp_path):
    overrides = {**SEVEN, 'decode_head.num_queries': 7, 'decode_head.transformer_decoder.num_layers': 1}
    plan = plan_for(facebook, tmp_path, overrides)
    list(checks._weights(plan))
    rows = list(csv.DictReader(io.StringIO(plan.starting.as_csv())))
    outcomes = {row['tensor']: row['outcome'] for row in rows}
    assert len(outcomes) == len(rows) == len(dict(model.named_parameters()))
    assert outcomes['backbone.norm3.weight'] == 'taken'
    assert outcomes['decode_head.query_feat.weight'] == 'made anew'
    assert outcomes['decode_head.transformer_decoder.layers.1.norms.0.bias'] == 'left out'
    assert {name for name, outcome in outcomes.items() if outcome == 'taken in part'} == set(EMBEDDING)
    lines = plan.starting.table()
    assert lines[0].split() == ['tensors', 'taken', 'taken', 'in', 'part', 'made', 'anew', 'left', 'out']
    sums = [sum(int(line.split()[column]) for line in lines[1:]) for column in (1, 2, 3, 4)]
    assert sums == [sum(row['outcome'] == name for row in rows) for name in starting_weights._OUTCOMES]


@pytest.mark.parametrize(
    ('overrides', 'said'),
    [
        ({'backbone.embed_dims': 24, 'decode_head.in_channels': [24, 48, 96, 192]}, 'of backbone fits, at least 90 %'),
        ({'decode_head.out_channels': 64, 'decode_head.transformer_decoder.num_layers': 40}, 'of decode_head fits'),
    ],
)
def test_a_share_that_means_another_model_is_refused(overrides, said, checkpoint, tmp_path):
    with pytest.raises(console.UserError, match='is of another model') as caught:
        list(checks._weights(plan_for(checkpoint, tmp_path, overrides)))
    assert said in str(caught.value)


def test_a_resnet_of_facebookresearch(tmp_path):
    """Named as detectron2 names it; the statistics of the batch norms are taken too."""
    config = run_config.load(backbones.config_file('r50'))
    config.merge_from_dict({'model.backbone.base_channels': 4, 'model.backbone.stem_channels': 8})
    config.model.backbone.init_cfg = None
    config.model.decode_head.in_channels = [16, 32, 64, 128]
    model = run_config.build_model(config)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.uniform_(0.1, 1) if value.is_floating_point() else value
    theirs = names.to_foreign(model.state_dict(), names.FACEBOOK)
    for name in (
        'stem.conv1.weight',
        'stem.conv1.norm.running_var',
        'res2.0.shortcut.norm.bias',
        'res5.2.conv3.weight',
    ):
        assert f'backbone.{name}' in theirs
    (tmp_path / 'r50.pkl').write_bytes(pickle.dumps({'model': {n: v.numpy() for n, v in theirs.items()}}))
    plan = Plan(
        Options('full', init_from=str(tmp_path / 'r50.pkl')),
        config=config,
        folder=tmp_path,
        model=run_config.build_model(config),
    )
    weights = begun(plan)
    learned = [name for name in weights if not name.endswith('num_batches_tracked')]
    assert all(torch.equal(weights[name], model.state_dict()[name]) for name in learned)
    with pytest.raises(KeyError):
        names.to_foreign(model.state_dict(), names.HUGGINGFACE)


def test_tensors_that_the_model_lacks_are_named(facebook, tmp_path, capsys):
    begun(plan_for(facebook, tmp_path, {'decode_head.transformer_decoder.num_layers': 1}))
    said = capsys.readouterr().err
    assert 'tensors of model_final.pkl are not in the model' in said
    assert 'decode_head.transformer_decoder.layers.1.' in said


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'model': {'sem_seg_head.a': torch.zeros(1)}}, 'its backbone is neither Swin nor ResNet'),
        (
            {'state_dict': {'backbone.a': torch.zeros(1)}},
            'is of another model: 0 % of backbone fits, at least 90 % is needed; backbone.patch_embed',
        ),
        ({'epoch': 3}, 'holds no weights'),
        (evil_checkpoints.touching(Path('never')), 'refused, it asks for builtins.exec'),
    ],
)
def test_another_model_is_refused_by_the_checks(content, said, tmp_path):
    (tmp_path / 'a.pth').write_bytes(evil_checkpoints.zipped(content))
    with pytest.raises(console.UserError, match=said.replace('.', r'\.')):
        list(checks._weights(plan_for(tmp_path / 'a.pth', tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_options(tmp_path):
    with pytest.raises(console.UserError, match='--init_from and --pretrained both name'):
        options.read('full', ['--demo', '--init_from=a', '--pretrained=none'])
    with pytest.raises(console.UserError, match='--class_map: only the classes of --init_from'):
        options.read('full', ['--demo', '--class_map=names'])
    with pytest.raises(console.UserError, match='--class_map: there is no file'):
        options.read('full', ['--demo', f'--init_from={tmp_path}', f'--class_map={tmp_path / "map.json"}'])
    with pytest.raises(console.UserError, match='--init_from: there is no file'):
        options.read('performance', ['--demo', f'--init_from={tmp_path / "none"}'])
    assert options.read('full', ['--demo', f'--init_from={tmp_path}']).init_from == str(tmp_path)


def test_a_resumed_run_reads_its_checkpoint_alone(tmp_path):
    plan = plan_for(tmp_path / 'gone.pkl', tmp_path)
    plan.options = replace(plan.options, resume=True)
    (finding,) = checks._weights_file(plan)
    assert finding.found == 'not needed, the checkpoint holds them'
    assert list(checks._weights(plan)) == []


def test_an_export_can_begin_a_training(model, checkpoint, tmp_path):
    out = tmp_path / 'model.safetensors'
    cli.main(['--checkpoint', str(checkpoint), '--format=safetensors', '--out', str(out), '--parity_pictures=1'])
    weights = begun(plan_for(out, tmp_path))
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
