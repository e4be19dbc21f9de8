import json
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

import metrics_toy
from recipe.report import metrics, plot

IMAGES = 4  # of the 8 validation images, every second one is drawn


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plot')
    data = metrics_toy.make_cityscapes(folder / 'data')
    return metrics_toy.train(folder / 'run', data, max_iters=12, val_interval=6, interval=1, draw=True).parent


@pytest.fixture
def run(drawn, tmp_path):
    return Path(shutil.copytree(drawn, tmp_path / 'run'))


def pictures(run):
    return sorted(run.glob('*/vis_data/vis_image/*.png'))


def collect(run):
    return metrics.collect(run)


def test_pictures_are_written_beside_the_result(run):
    names = [path.name for path in metrics.write(collect(run), run)]
    assert names == ['result.json', 'loss.txt', 'curves.png', 'predictions.png']
    for name in names[2:]:
        with Image.open(run / name) as picture:
            assert picture.width > 800 and picture.height > 500
            assert len(numpy.unique(numpy.asarray(picture.convert('L')))) > 50
    assert not list(run.glob('.*'))


def test_the_sheet_shows_the_last_validation(run):
    found = plot._last_pictures(collect(run))
    assert len(found) == IMAGES
    assert {picture.iter for picture in found} == {12}
    assert [picture.image for picture in found] == [f'frankfurt_{n:06d}_000019_leftImg8bit.png' for n in (1, 3, 5, 7)]


def test_a_row_is_image_ground_truth_and_prediction(run):
    result = collect(run)
    picture, tiles = plot._row(plot._last_pictures(result)[0], result)
    both = numpy.asarray(Image.open(picture.path).convert('RGB'))
    assert both.shape == (metrics_toy.HEIGHT, 2 * metrics_toy.WIDTH, 3)
    assert (tiles['ground truth'] == both[:, : metrics_toy.WIDTH]).all()
    assert (tiles['prediction'] == both[:, metrics_toy.WIDTH :]).all()
    root = Path(result.run.starts[-1].config['val_dataloader']['dataset']['data_root'])
    source = root / 'leftImg8bit' / 'val' / 'frankfurt' / picture.image
    assert (tiles['image'] == numpy.asarray(Image.open(source))).all()


def test_without_the_data_set_the_sheet_has_no_image_column(run):
    config = next(run.glob('*/vis_data/config.py'))
    config.write_text(config.read_text().replace("data_root='", "data_root='/nowhere"))
    result = collect(run)
    _, tiles = plot._row(plot._last_pictures(result)[0], result)
    assert set(tiles) == {'ground truth', 'prediction'}
    assert plot.predictions(result, run / 'predictions.png').is_file()


def test_no_picture_is_a_warning(run, capsys):
    shutil.rmtree(pictures(run)[0].parent)
    names = [path.name for path in metrics.write(collect(run), run)]
    assert names == ['result.json', 'loss.txt', 'curves.png']
    assert 'warning: no predictions.png' in capsys.readouterr().err


def test_a_damaged_picture_is_a_warning(run, capsys):
    last = [path for path in pictures(run) if path.stem.endswith('_12')]
    last[0].write_bytes(last[0].read_bytes()[:100])
    result = collect(run)
    assert plot.predictions(result, run / 'predictions.png')
    assert f'warning: {last[0]}' in capsys.readouterr().err


def test_many_pictures_are_thinned_out_evenly():
    many = [plot.Picture(Path(str(index)), str(index), 1) for index in range(500)]
    chosen = [int(picture.image) for picture in plot._spread(many)]
    assert len(chosen) == plot.MAX_ROWS
    assert chosen[0] == 0 and set(numpy.diff(chosen)) == {62, 63}
    assert plot._spread(many[:3]) == many[:3]
    assert plot._spread([]) == []


def test_curves_of_a_run_without_validation_or_times(run):
    path = next(run.glob('*/vis_data/scalars.json'))
    rows = [row for row in map(json.loads, path.open()) if 'loss' in row]
    for row in rows:
        del row['time'], row['lr']
    alone = run / 'alone'
    alone.mkdir()
    (alone / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    result = metrics.collect(alone / 'scalars.json', require=())
    assert plot.curves(result, alone / 'curves.png').is_file()


def test_curves_of_a_diverged_run_can_be_drawn(run):
    result = collect(run)
    for point in result.run.points[5:]:
        point.loss = float('nan')
    assert plot.curves(result, run / 'curves.png').is_file()
