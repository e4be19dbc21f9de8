"""``--init_from`` begins a training from any Mask2Former; what does not fit is named, and another model is refused."""

from __future__ import annotations

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
from recipe.engine import config as run_config
from recipe.export import cli, huggingface, names
from recipe.launch import checks, options
from recipe.launch import cli as launcher
from recipe.launch.plan import Plan


def plan_for(source: Path, folder: Path, overrides: Any = None) -> Plan:
    """A plan as far as the check of the weights needs it, with the small model."""
    config = run_config.load(ROOT / bench_model.DEMO)
    config.merge_from_dict({f'model.{key}': value for key, value in {**SMALL, **(overrides or {})}.items()})
    return Plan(
        Options('full', init_from=str(source)), config=config, folder=folder, model=run_config.build_model(config)
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
    huggingface.write(type('Trained', (), {'model': model, 'classes': tuple('a' * 19)}), tmp_path / 'hf', None)
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
    plan = plan_for(facebook, tmp_path, {'decode_head.num_classes': 7, 'decode_head.loss_cls.class_weight': [1.0] * 8})
    weights = begun(plan)
    said = capsys.readouterr().err
    assert '--init_from: 2 of ' in said
    assert 'decode_head.cls_embed.weight is (20, 128) there and (8, 128) in the model' in said
    assert 'decode_head.cls_embed.bias is (20,) there' in said
    assert not weights['decode_head.cls_embed.weight'].any()
    assert torch.equal(weights['decode_head.query_feat.weight'], model.decode_head.query_feat.weight)


def test_tensors_that_the_model_lacks_are_named(facebook, tmp_path, capsys):
    begun(plan_for(facebook, tmp_path, {'decode_head.transformer_decoder.num_layers': 1}))
    said = capsys.readouterr().err
    assert 'tensors of model_final.pkl are not in the model' in said
    assert 'decode_head.transformer_decoder.layers.1.' in said


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'model': {'sem_seg_head.a': torch.zeros(1)}}, 'its backbone is no Swin'),
        ({'state_dict': {'backbone.a': torch.zeros(1)}}, 'is of another model: backbone.patch_embed'),
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
