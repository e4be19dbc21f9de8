"""The launchers' options: one table, and the checks that need only a bare Python 3.8."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from dataclasses import replace
from typing import Callable, List, NoReturn, Optional, Sequence, Tuple

from recipe.core import console, inputs, network, run_folder
from recipe.core.inputs import integer
from recipe.core.run_options import BACKBONES, SCRIPTS, Options
from recipe.data import diagnosis
from recipe.data.sets import file as dataset_file

EXIT_HELP = 10  # the table was printed, so test/lib.sh has nothing to launch
DEVICES = ('auto', 'npu', 'cuda', 'cpu')
PRECISIONS = ('off', 'bf16', 'fp16')
ENGINES = ('recipe', 'upstream')
MODES = ('whole', 'slide')
SPLITS = ('val', 'test')
TRACKERS = ('tensorboard', 'wandb', 'mlflow', 'swanlab')
_DESCRIPTIONS = {
    'full': 'Train, validate and report mIoU and FPS.',
    'performance': 'Measure images per second in a short training run that keeps no checkpoint.',
    'evaluate': 'Evaluate a checkpoint: metrics, tables, pictures, the archive for the test server. Predictions that '
    'are there already are not made again.',
}
_EPILOGUE = (
    'Both forms hold: --opt=value and --opt value. What follows a lone -- overrides the config, for '
    'example: -- model.backbone.with_cp=True optim_wrapper.optimizer.lr=5e-5'
)
# Options of a training that an evaluation does not have.
_OF_A_TRAINING = {
    *('init_from', 'class_map', 'num_points', 'keep_checkpoints', 'resume', 'decoded_cache', 'max_iters'),
    *('val_interval', 'backbone', 'pretrained', 'seed', 'engine', 'compile', 'graph', 'on_nan', 'on_bad_image'),
    *('accumulate', 'checkpoint_activations', 'freeze', 'memory', 'log_to', 'ema', 'early_stop'),
}
_SWITCH = {'0': '0', 'false': '0', 'no': '0', 'off': '0', '1': '1', 'true': '1', 'yes': '1', 'on': '1'}
_OVERRIDE = re.compile(r'[A-Za-z_]\w*(\.\w+)*=.+', re.ASCII | re.DOTALL)


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f'{text!r} is not one of {", ".join(choices)}')
        return text

    return read


def _switch(*others: str) -> Callable[[str], str]:
    """A parser of ``0`` and ``1``, in any of their usual words, and of ``others``."""

    def read(text: str) -> str:
        return _SWITCH.get(text.lower()) or _one_of(('0', '1', *others))(text)

    return read


def _count_or_all(text: str) -> int:
    """Read the number of checkpoints to keep, ``all`` as mmengine's -1."""
    # Two at least: if one is damaged, or the run is killed while it writes one, there is another.
    return -1 if text == 'all' else integer(2, 10**6)(text)


def _stop_or_skip(text: str) -> int:
    """Read ``stop`` as 0 and ``skip:N`` as N."""
    if text == 'stop':
        return 0
    word, _, count = text.partition(':')
    if word != 'skip':
        raise argparse.ArgumentTypeError(f'{text!r} is neither stop nor skip:N, such as skip:3')
    return integer(1, 10**6)(count)


def _frozen(text: str) -> str:
    """Read ``backbone`` or ``stages:N``."""
    word, _, count = text.partition(':')
    if text != 'backbone' and word != 'stages':
        raise argparse.ArgumentTypeError(f'{text!r} is neither backbone nor stages:N, such as stages:2')
    return text if text == 'backbone' else f'stages:{integer(0, 100)(count)}'


def _decay(text: str) -> float:
    """Read the decay of a moving average, a number between 0.5 and 1."""
    try:
        decay = float(text)
    except ValueError:
        decay = math.nan
    if not 0.5 <= decay < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0.5 to below 1, such as 0.9998')
    return decay


def _trackers(text: str) -> Tuple[str, ...]:
    """Read the names of trackers, each once, with ``:online`` or without."""
    asked = tuple(text.split(','))
    for one in asked:
        name, _, how = one.partition(':')
        if name not in TRACKERS:
            raise argparse.ArgumentTypeError(f'{name!r} is not one of {", ".join(TRACKERS)}')
        if how not in ('', 'online') or one.endswith(':'):
            raise argparse.ArgumentTypeError(f'{one!r}: after the colon only {name}:online is known')
        if one == 'tensorboard:online':
            raise argparse.ArgumentTypeError('tensorboard writes files only; give tensorboard')
    names = [one.partition(':')[0] for one in asked]
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f'{text!r} names a tracker twice')
    return asked


def _text(text: str) -> str:
    """Read a path or a name. A leading dash means that the value was forgotten and the next option was taken for it."""
    if not text.strip():
        raise argparse.ArgumentTypeError('needs a value, and got an empty one')
    if '{{' in text:
        raise argparse.ArgumentTypeError(f'{text!r} holds two opening braces, which config files replace; rename it')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f'{text!r} is not UTF-8, as config files are; rename it') from None
    if text.startswith('-'):
        raise argparse.ArgumentTypeError(f'needs a value, and {text!r} looks like an option (a file: ./{text})')
    return text


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r'^argument (-h/)?', '', message)
        message = message.replace(': expected one argument', ' needs a value')
        message = re.sub(r': ignored explicit argument .*', ' takes no value', message)
        raise console.UserError(message, '--help lists the options', console.EXIT_USAGE)


def make_parser(script: str) -> argparse.ArgumentParser:
    """The option table of one launcher.

    Args:
        script: ``full``, ``performance`` or ``evaluate``.
    """
    full, evaluates = script == 'full', script == 'evaluate'
    parser = _Parser(
        prog=f'bash test/{SCRIPTS[script]}.sh',
        description=_DESCRIPTIONS[script],
        epilog=_EPILOGUE.partition(' What')[0] if evaluates else _EPILOGUE,
        allow_abbrev=False,
        usage='%(prog)s --checkpoint=FILE|RUN [options]' if evaluates else '%(prog)s [options] [-- key=value ...]',
    )

    def add(name: str, kind: Callable[[str], object], metavar: str, text: str) -> None:
        if not (evaluates and name in _OF_A_TRAINING):
            parser.add_argument(f'--{name}', type=kind, metavar=metavar, help=text)

    def add_flag(name: str, text: str) -> None:
        parser.add_argument(f'--{name}', action='store_true', help=text)

    if evaluates:
        add('checkpoint', _text, 'FILE|RUN', 'checkpoint, or a run folder, which means its best checkpoint')
        add('split', _one_of(SPLITS), '|'.join(SPLITS), "pictures to evaluate; Cityscapes' test has no labels (val)")
        add('mode', _one_of(MODES), '|'.join(MODES), 'score whole pictures, or windows of the crop size (whole)')
        add_flag('tta', 'average the scores over scales 0.5 to 1.75 and flips; twelve times the work or more')
        add_flag('official', "also run cityscapesscripts' own evaluation, and fail if it finds anything else")
        add('submission', _text, 'FILE.zip', 'write the archive for the test server')
    add(
        'resume',
        _switch('auto'),
        '0|1|auto',
        '1 continues from the newest good checkpoint; auto also begins where there is none; full script only (0)',
    )
    add(
        'batch_size',
        integer(1, 4096),
        'N',
        f'images per card ({"what the config says" if evaluates else 2})',
    )
    add(
        'accumulate',
        integer(1, 4096),
        'N',
        'batches of each card whose gradients are summed for one optimizer step, which is one iteration (1)',
    )
    add('checkpoint_activations', _switch(), '0|1', "1 computes the backbone's activations twice to save memory (0)")
    add('freeze', _frozen, 'backbone|stages:N', 'do not train the backbone, or its stem and first N stages (none)')
    add('memory', _one_of(('report',)), 'report', 'instead of training, measure the memory of a step and what saves it')
    loaders = (
        'loader threads per card' if evaluates else 'loader processes per card, for training and as many for validation'
    )
    add('num_workers', integer(0, 256), 'N', f'{loaders} (2)')
    add('data_path', _text, 'DIR', 'Cityscapes root, holds leftImg8bit/ and gtFine/ (mmsegmentation/data/cityscapes)')
    add(
        'dataset',
        _text,
        'FILE',
        'file of your own data set, from tools/dataset.py inspect; replaces --data_path (none)',
    )
    add('decoded_cache', _text, 'DIR', 'decoded pictures, made by cityscapes.py cache (none: PNG files are decoded)')
    kept = 'one folder for each checkpoint and options' if evaluates else 'a new folder'
    add('work_dir', _text, 'DIR', f'where the run keeps everything ({kept} in test/output/{SCRIPTS[script]}/)')
    add(
        'nproc',
        integer(1, 1024),
        'N',
        'cards (processes) on this machine (8; with --demo those that are there)',
    )
    add('device', _one_of(DEVICES), '|'.join(DEVICES), f'what to {"predict" if evaluates else "train"} on (auto)')
    add(
        'max_iters',
        integer(1, 10**9),
        'N',
        f'iterations; the learning rate follows ({90000 if full else 1000})',
    )
    add('val_interval', integer(1, 10**9), 'N', f'iterations between validations ({5000 if full else 1000})')
    source = 'the one in the checkpoint' if evaluates else 'configs/mask2former_swin-b_cityscapes.py; with --demo'
    add('config', _text, 'FILE', f'config file ({source}{"" if evaluates else " configs/demo.py"})')
    add('backbone', _one_of(BACKBONES), '|'.join(BACKBONES), "backbone, set as upstream's config of it has it (swin-b)")
    add('pretrained', _text, 'FILE|none', 'backbone weights; none trains from scratch (what the config names)')
    add('init_from', _text, 'FILE|DIR', 'whole model to begin from, of this or another trainer (none)')
    add(
        'class_map',
        _text,
        'FILE.json|names',
        'which old class the row of a new class comes from; names: that of its name (rows are made anew)',
    )
    add('seed', integer(0, 2**31 - 1), 'N', 'random seed (what the config says)')
    add(
        'amp', _one_of(PRECISIONS), '|'.join(PRECISIONS), f'mixed precision ({"off" if evaluates else "as configured"})'
    )
    add('engine', _one_of(ENGINES), '|'.join(ENGINES), "exact resume and guards, or mmengine's own loop (recipe)")
    add(
        'num_points',
        integer(1, 10**6),
        'N',
        "points of a mask that the losses compare; Ascend's own scripts use 3136 (as configured, 12544)",
    )
    add('keep_checkpoints', _count_or_all, 'N|all', 'newest checkpoints to keep, beside the best; full script only (3)')
    add('tf32', _switch(), '0|1', 'float32 products in TF32 or HF32 (convolutions only, as torch has it)')
    add('compile', _switch(), '0|1', '1 trains in graphs of torch.compile; not on NPU (0)')
    add('graph', _switch(), '0|1', '1 trains with one CUDA graph for forward and backward; not run on a GPU yet (0)')
    add('fast', _switch(), '0|1', "0 leaves upstream's own modules, which are slower (1)")
    add(
        'nnodes',
        integer(1, 4096),
        'N',
        'machines; more than one need the next three and a shared --work_dir (1)',
    )
    add('node_rank', integer(0, 4095), 'N', 'number of this machine, from 0')
    add('master_addr', _text, 'HOST', 'address of machine 0')
    add('master_port', integer(1, 65535), 'N', 'port on machine 0 (one machine: a free one)')
    but = '' if evaluates else '; full script only'
    add('max_restarts', integer(0, 1000), 'N', f'starts again after a rank has failed or hangs{but} (0)')
    add(
        'hang_timeout',
        integer(0, 10**6),
        'S',
        'seconds without progress that mean a hang; 0: never (480; CPU 1500)',
    )
    add('doctor', _switch(), '0|1', '0 starts without looking the machine over (1)')
    add('on_nan', _stop_or_skip, 'stop|skip:N', 'loss or gradient that is not finite: end, or skip N such steps (stop)')
    add('ema', _decay, 'DECAY', 'validate and save a moving average of the weights with this decay, such as 0.9998')
    add(
        'early_stop', integer(1, 10**6), 'N', 'end after N validations in a row without a better mIoU; full script only'
    )
    add('log_to', _trackers, 'NAME,...', f'trackers, local files unless NAME:online: {", ".join(TRACKERS)} (none)')
    add('on_bad_image', _stop_or_skip, 'stop|skip:N', 'an unreadable image: end, or replace N of them on a card (stop)')
    add_flag(
        'trust_checkpoint',
        'load checkpoints and weights even if they could run code; only for files whose origin you trust',
    )
    demo = (
        'the built-in data set'
        if evaluates
        else 'the whole job on built-in street scenes and a small model, in minutes'
    )
    add_flag('demo', demo)
    return parser


def _split(argv: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Split the options from the overrides after the first ``--``."""
    if '--' not in argv:
        return list(argv), []
    cut = list(argv).index('--')
    return list(argv[:cut]), list(argv[cut + 1 :])


def parse(script: str, argv: Sequence[str]) -> Options:
    """Read the options of a launcher.

    Args:
        script: ``full``, ``performance`` or ``evaluate``.
        argv: As the user gave them.

    Raises:
        console.UserError: Names the option, what is wrong with it and what it takes.
    """
    parser = make_parser(script)
    options, overrides = _split(argv)
    given, unknown = parser.parse_known_args(options)
    if unknown:
        raise console.UserError(_unknown(unknown[0], parser), status=console.EXIT_USAGE)
    for override in overrides:
        _check_override(override)
    if script == 'evaluate' and overrides:
        raise console.UserError(
            f'{overrides[0]}: an evaluation takes no config overrides', 'give --config=FILE', console.EXIT_USAGE
        )
    values = {name: value for name, value in vars(given).items() if value is not None}
    values['or_begin'] = values.get('resume') == 'auto'
    values['resume'] = values.get('resume') in ('1', 'auto')
    if 'tf32' in values:
        values['tf32'] = values['tf32'] == '1'
    values['compile'] = values.get('compile') == '1'
    values['graph'] = values.get('graph') == '1'
    if 'checkpoint_activations' in values:
        values['checkpoint_activations'] = values['checkpoint_activations'] == '1'
    values['fast'] = values.get('fast') != '0'
    values['doctor'] = values.get('doctor') != '0'
    return Options(script=script, overrides=overrides, **values)


def _unknown(text: str, parser: argparse.ArgumentParser) -> str:
    if not text.startswith('-'):
        return f'unexpected argument {text!r}; options begin with --, and config overrides come after a lone --'
    name = text.split('=', 1)[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(name.replace('-', '_').replace('__', '--', 1), known, 1, 0.5)
    hint = f'did you mean {close[0]}?' if close else '--help lists the options'
    return f'unknown option {name}; {hint}'


def _check_override(text: str) -> None:
    if text.startswith('--'):
        raise console.UserError(
            f'{text} comes after the lone --, where config overrides are given as key=value',
            'options go before it',
            console.EXIT_USAGE,
        )
    if not _OVERRIDE.fullmatch(text):
        raise console.UserError(
            f'override {text!r} is not key=value, such as train_cfg.max_iters=100', status=console.EXIT_USAGE
        )
    for opening, closing in ('()', '[]'):
        if text.count(opening) != text.count(closing):
            raise console.UserError(f'override {text!r} has unbalanced brackets', status=console.EXIT_USAGE)
    key = text.split('=', 1)[0]
    if key in ('work_dir', 'resume', 'launcher'):
        raise console.UserError(f'override {text!r}: the launcher sets {key}', 'use its options', console.EXIT_USAGE)


def require_consistent(options: Options) -> None:
    """Stop if options contradict each other.

    Raises:
        console.UserError: Names both options and what to do.
    """
    if options.resume and options.script == 'performance':
        raise console.UserError(
            f'--resume={"auto" if options.or_begin else "1"}: a performance run keeps no checkpoint to continue from',
            'leave it out',
            console.EXIT_USAGE,
        )
    if options.backbone is not None and options.demo:
        raise console.UserError(
            f'--backbone={options.backbone}: the demo has a small model of its own, and a learning rate for it alone',
            'leave out --backbone, or --demo',
            console.EXIT_USAGE,
        )
    if options.init_from is not None and options.pretrained is not None:
        raise console.UserError(
            '--init_from and --pretrained both name the weights to begin from',
            'leave out --pretrained; --init_from holds the backbone too',
            console.EXIT_USAGE,
        )
    if options.class_map is not None and options.init_from is None:
        raise console.UserError(
            '--class_map: only the classes of --init_from can be mapped', 'give --init_from=FILE', console.EXIT_USAGE
        )
    if options.compile and not options.fast:
        raise console.UserError(
            '--compile=1: only the fast modules can be compiled', 'leave out --fast=0', console.EXIT_USAGE
        )
    if options.graph:
        others = {
            '--compile=1': options.compile,
            '--fast=0': not options.fast,
            '--engine=upstream': options.engine == 'upstream',
            f'--accumulate={options.accumulate}': options.accumulate > 1,
        }
        for other in (name for name, given in others.items() if given):
            raise console.UserError(f'--graph=1 and {other} do not go together', 'leave one out', console.EXIT_USAGE)
    if options.max_restarts and options.script == 'performance':
        raise console.UserError(
            f'--max_restarts={options.max_restarts}: a performance run keeps no checkpoint to go on from',
            'leave it out',
            console.EXIT_USAGE,
        )
    if options.keep_checkpoints is not None and options.script == 'performance':
        raise console.UserError(
            '--keep_checkpoints: a performance run keeps no checkpoint', 'leave it out', console.EXIT_USAGE
        )
    if options.early_stop is not None and options.script == 'performance':
        raise console.UserError(
            '--early_stop: a performance run has a fixed length', 'leave it out', console.EXIT_USAGE
        )
    if options.memory is not None and options.nnodes > 1:
        raise console.UserError(
            '--memory=report measures one card of one machine', 'leave out --nnodes', console.EXIT_USAGE
        )
    if options.or_begin and options.work_dir is None:
        raise console.UserError(
            '--resume=auto needs --work_dir as well, the folder to continue or begin in', status=console.EXIT_USAGE
        )
    if options.nnodes > 1:
        needed = ('node_rank', 'master_addr', 'master_port', 'work_dir')
        missing = [f'--{name}' for name in needed if getattr(options, name) is None]
        if missing:
            raise console.UserError(
                f'--nnodes={options.nnodes} needs {", ".join(missing)} as well (the same on every machine but for '
                '--node_rank; --work_dir on storage that all share)',
                status=console.EXIT_USAGE,
            )
    if options.dataset is not None and options.decoded_cache is not None:
        raise console.UserError(
            '--decoded_cache holds pictures of Cityscapes, and --dataset names another set',
            'leave out --decoded_cache',
            console.EXIT_USAGE,
        )
    if options.script == 'evaluate':
        _require_evaluation(options)
    if (options.node_rank or 0) >= options.nnodes:
        raise console.UserError(
            f'--node_rank={options.node_rank} is out of range',
            f'with --nnodes={options.nnodes} give '
            + ('0' if options.nnodes == 1 else f'a number from 0 to {options.nnodes - 1}'),
            console.EXIT_USAGE,
        )


def _require_evaluation(options: Options) -> None:
    """Stop if options of an evaluation contradict each other."""
    if options.checkpoint is None:
        raise console.UserError(
            '--checkpoint is missing', 'give --checkpoint=FILE, or the folder of a run', console.EXIT_USAGE
        )
    for name in ('official', 'submission'):
        if getattr(options, name) and options.dataset is not None:
            raise console.UserError(
                f'--{name} is for Cityscapes only, and --dataset names another set',
                f'leave out --{name}',
                console.EXIT_USAGE,
            )
    if options.official and options.split == 'test':
        raise console.UserError(
            '--official: the test split has no labels to evaluate with', 'leave it out', console.EXIT_USAGE
        )
    if options.submission is not None and not options.submission.endswith('.zip'):
        raise console.UserError(
            f'--submission: {options.submission} does not end with .zip', 'give FILE.zip', console.EXIT_USAGE
        )


def settle(options: Options) -> Options:
    """Stop if options contradict each other, and resolve --resume=auto by what is in its folder.

    Raises:
        console.UserError: As ``require_consistent``.
    """
    require_consistent(options)
    if not options.or_begin:
        return options
    return replace(options, resume=run_folder.has_checkpoint(str(options.work_dir)))


def read(script: str, argv: Sequence[str]) -> Options:
    """Parse the options and run every check that needs no installed package and writes nothing.

    Args:
        script: ``full``, ``performance`` or ``evaluate``.
        argv: As the user gave them.

    Raises:
        console.UserError: The first fault found.
    """
    options = settle(parse(script, argv))
    if options.dataset is not None:
        dataset_file.read(options.dataset, options.data_path)
    # The data sets of another config may have another layout; the checks know it once they have read the config.
    elif not options.uses_demo_data and (options.config is None or script == 'evaluate'):
        diagnosis.require_root(options.data_path, options.needs_labels)
    elif options.data_path is not None:
        diagnosis.require_folder(options.data_path)
    if options.checkpoint is not None and not inputs.absolute(options.checkpoint).is_dir():
        inputs.require_file('--checkpoint', options.checkpoint)
    if options.submission is not None and options.is_first_node:
        _require_new(options.submission)
    if options.config is not None:
        inputs.require_file('--config', options.config, '.py')
    if options.pretrained is not None and options.pretrained != 'none':
        inputs.require_file('--pretrained', options.pretrained)
    if options.init_from is not None and not inputs.absolute(options.init_from).is_dir():
        inputs.require_file('--init_from', options.init_from)
    if options.class_map not in (None, 'names'):
        inputs.require_file('--class_map', str(options.class_map))
    if options.is_first_node:
        if script != 'evaluate':
            run_folder.choose(SCRIPTS[script], options.demo, options.work_dir, options.resume, options.or_begin)
        elif options.work_dir is not None:
            run_folder.require_writable(inputs.absolute(options.work_dir))
        network.require_port(options.master_addr, options.master_port)
    return options


def _require_new(given: str) -> None:
    """Check that the archive can be written and overwrites nothing."""
    path = inputs.absolute(given)
    if os.path.lexists(str(path)):
        raise console.UserError(f'--submission: {path} is there already', 'give another name, or move it away')
    if not path.parent.is_dir() or not os.access(str(path.parent), os.W_OK | os.X_OK):
        raise console.UserError(f'--submission: {path.parent} is no folder that can be written to', 'give another name')


def main(argv: Sequence[str]) -> Optional[int]:
    """Check a command line, or print the table.

    Args:
        argv: ``full``, ``performance`` or ``evaluate``, then the options.
    """
    script, *argv = argv
    if {'-h', '--help'} & set(_split(argv)[0]):
        make_parser(script).print_help()
        return EXIT_HELP
    read(script, argv)
    return None
