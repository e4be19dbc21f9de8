"""Logs to every tracker with its real library, offline, and prints what each library reads back.

    tracker_run.py PACKAGES OUT     # PACKAGES: a folder of pip install --target, OUT: a new folder

Sockets to other machines are refused, so that nothing can be sent. Prints JSON: for each tracker pairs of step, loss.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LOSSES = [(10, 3.5), (20, 2.25), (30, 1.0)]


def stay_at_home() -> List[str]:
    """Refuse connections to other machines; the list that is returned gets their addresses."""
    asked: List[str] = []

    def watch(event: str, args: tuple) -> None:
        if event == 'socket.connect' and isinstance(args[1], tuple) and args[1][0] not in ('127.0.0.1', '::1'):
            asked.append(str(args[1]))
            raise OSError('this test reaches no other machine')

    sys.addaudithook(watch)
    return asked


def log(tracker: str, save_dir: Path) -> None:
    """Log a config, losses and an image."""
    from mmengine.config import Config

    from recipe.engine.trackers import TrackerVisBackend

    backend = TrackerVisBackend(str(save_dir), tracker)
    backend.add_config(Config({'model': {'type': 'Model', 'sizes': [1, 2]}, 'lr': 0.1}))
    for step, loss in LOSSES:
        backend.add_scalars({'loss': np.float32(loss), 'note': 'not a number'}, step)
    backend.add_image('street', np.zeros((8, 8, 3), np.uint8), 30)
    backend.close()
    assert backend._works is False and backend._tracker is None


def read_tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()['images'] == ['street']
    return [(event.step, event.value) for event in events.Scalars('loss')]


def read_wandb(folder: Path) -> Any:
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob('wandb/offline-run-*/run-*.wandb')
    found = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if 'loss' in row:
            found.append((row['iteration'], row['loss']))
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format; wandb writes 7 bytes of its own before the first."""
    at, parts, block = 7, [], 32768
    while at + 7 <= len(content):
        if block - at % block < 7:  # what is left of a block is zeros
            at += block - at % block
            continue
        length, kind = struct.unpack_from('<HB', content, at + 4)
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b''.join(parts)
            parts = []


def read_swanlab(folder: Path) -> Any:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = (path for path in folder.rglob('*') if path.is_file() and path.read_bytes()[:4] == b':SWL')
    reader = DataStoreReader()
    reader.open(path)
    found = []
    while True:
        data = reader.scan()
        if data is None:
            return found
        record = Record()
        record.ParseFromString(data)
        if record.HasField('scalar') and record.scalar.key == 'loss':
            found.append((record.scalar.step, record.scalar.value.number))


def read_mlflow(folder: Path) -> Any:
    import mlflow

    client = mlflow.MlflowClient(folder.as_uri())
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == 'FINISHED'
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {'config.py'}
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, 'loss')]


def main(packages: str, out: str) -> Dict[str, Any]:
    """Log and read back."""
    sys.path += [str(ROOT), packages]  # after the packages of the environment
    asked = stay_at_home()
    save_dir = Path(out).resolve() / 'run' / '20260101_000000' / 'vis_data'
    save_dir.mkdir(parents=True)
    found: Dict[str, Any] = {}
    readers = {'tensorboard': read_tensorboard, 'wandb': read_wandb, 'mlflow': read_mlflow, 'swanlab': read_swanlab}
    for tracker, read in readers.items():
        log(tracker, save_dir)
        found[tracker] = read(save_dir / tracker)
    return {'found': found, 'connections': asked}


if __name__ == '__main__':
    print(json.dumps(main(*sys.argv[1:])))
