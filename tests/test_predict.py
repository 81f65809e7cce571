"""Detections in images of one's own: drawn, and as JSON; and the list of recipes."""

from __future__ import annotations

import json
import os
import re
import signal
import warnings
from pathlib import Path

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.apis import inference_detector
from mmdet.models import build_detector
from PIL import Image

from mtpd import predict
from mtpd.cli.main import main
from mtpd.config.recipe import load_recipe
from mtpd.data.loading import read_image
from mtpd.errors import MtpdError
from mtpd.pipeline.mmdet_config import recipe_as_mmdet
from mtpd.runtime import checkpoints
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
MASKS = 'configs/mini/mask_rcnn_r50__swint_swins.py'
FEW = {'data.scenes.train': 2, 'data.scenes.val': 3}


@pytest.fixture(scope='module', params=[MINI, MASKS], ids=['boxes', 'masks'])
def trained(request, tmp_path_factory):
    """A checkpoint with random weights as the kit writes it, and a folder of images."""
    folder = tmp_path_factory.mktemp('predict')
    few = FEW | {'data.cache': str(folder)}
    if request.param == MINI:  # an untrained head scores everything at 0.01
        few['student.model.test_cfg.score_thr'] = 0.0
    recipe = load_recipe(request.param, few)
    torch.manual_seed(0)
    model = build_detector(ConfigDict(recipe.model('student')))
    model.init_weights()
    meta = {'CLASSES': recipe.classes, 'config': recipe_as_mmdet(recipe, 'student')}
    path = folder / 'student.pth'
    checkpoints.save_atomic({'meta': meta, 'state_dict': model.state_dict()}, path)
    return path, recipe.split('val')[1], request.param == MASKS


def test_what_is_found_is_what_mmdet_finds(trained, tmp_path):
    path, folder, masks = trained
    model = predict.detector(path)
    rows = list(predict.predict(model, [folder], tmp_path, threshold=0.001))
    assert len(rows) == 3
    assert json.loads((tmp_path / 'predictions.json').read_text()) == rows
    for row in rows:
        result = inference_detector(model, row['image'])
        assert isinstance(result, tuple) == masks
        boxes = np.concatenate(result[0] if masks else result)
        detections = boxes[boxes[:, 4] >= 0.001]
        assert len(row['objects']) == len(detections) > 0
        scores = [item['score'] for item in row['objects']]
        assert scores == pytest.approx(sorted(detections[:, 4], reverse=True))
        best = detections[detections[:, 4].argmax()]
        assert row['objects'][0]['box'] == pytest.approx(best[:4])
        assert row['objects'][0]['class'] in model.CLASSES
        before, after = cv2.imread(row['image']), cv2.imread(row['drawn'])
        assert after.shape == (384, 384, 3) and before.shape == (128, 128, 3)
        assert np.abs(after[::3, ::3].astype(int) - before).mean() > 4


def test_nothing_is_drawn_below_the_threshold(trained, tmp_path):
    path, folder, _ = trained
    image = sorted(folder.iterdir())[0]
    (row,) = predict.predict(predict.detector(path), [image], tmp_path, threshold=1.0)
    assert row['objects'] == []
    apart = np.abs(cv2.imread(row['drawn'])[1::3, 1::3].astype(int) - cv2.imread(str(image)))
    assert apart.mean() < 4  # of 255: JPEG's


# Whose files are written over


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The demo's student with random weights, which finds something in any image."""
    folder = tmp_path_factory.mktemp('student')
    few = FEW | {'data.cache': str(folder), 'student.model.test_cfg.score_thr': 0.0}
    recipe = load_recipe(MINI, few)
    torch.manual_seed(0)
    detector = build_detector(ConfigDict(recipe.model('student')))
    detector.init_weights()
    meta = {'CLASSES': recipe.classes, 'config': recipe_as_mmdet(recipe, 'student')}
    path = folder / 'student.pth'
    checkpoints.save_atomic({'meta': meta, 'state_dict': detector.state_dict()}, path)
    detector = predict.detector(path)
    detector.path = path
    return detector


def photograph(path: Path, seed: int = 0, **options) -> Path:
    """An image 96 x 64 pixels, of blocks in colours that `seed` determines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    pixels = blocks.repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(path, **options)
    return path


def run(model, *sources, out: str | Path, threshold: float = 0.001) -> list[dict]:
    return list(predict.predict(model, sources, out, threshold))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('source', ['photos', 'photos/a.jpg', 'link'])
def test_photographs_are_not_drawn_over(model, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a.jpg', 'b.png', 'c.bmp'):
        photograph(tmp_path / 'photos' / name)
    (tmp_path / 'link').symlink_to('photos')
    before = files(tmp_path)
    with pytest.raises(MtpdError, match=r'photos is the folder of the images: .* with --out'):
        run(model, source, out=Path('photos'))
    assert files(tmp_path) == before


def test_files_of_others_are_not_written_over(model, tmp_path):
    """In a folder that holds the source folder, and photographs of the same names."""
    photograph(tmp_path / 'photos/a.jpg', seed=1)
    photograph(tmp_path / 'photos/b.gif', seed=1)
    photograph(tmp_path / 'a.jpg', seed=2)
    photograph(tmp_path / 'b.gif.png', seed=2)
    before = files(tmp_path)
    with pytest.raises(
        MtpdError, match=r'^2 files that mtpd predict did not write .*/a\.jpg: name'
    ):
        run(model, tmp_path / 'photos', out=tmp_path)
    (tmp_path / 'a.jpg').unlink()
    (tmp_path / 'b.gif.png').unlink()
    for content in ('[]x', '{"image": 1}', '[{"image": "a.jpg"}]'):
        (tmp_path / 'predictions.json').write_text(content)
        with pytest.raises(MtpdError, match=r'^a file that .*/predictions\.json: name another'):
            run(model, tmp_path / 'photos', out=tmp_path)
        assert (tmp_path / 'predictions.json').read_text() == content
    (tmp_path / 'predictions.json').unlink()
    assert len(run(model, tmp_path / 'photos', out=tmp_path)) == 2
    after = files(tmp_path)
    assert {name: after[name] for name in before if 'photos' in name} == {
        name: content for name, content in before.items() if 'photos' in name
    }
    (tmp_path / 'file').write_text('')
    with pytest.raises(MtpdError, match=r'cannot be written to .* with --out'):
        run(model, tmp_path / 'photos', out=tmp_path / 'file')


def test_the_same_command_may_be_repeated(model, tmp_path, monkeypatch):
    """Its folder of drawings may lie in that of the photographs, and is no source."""
    monkeypatch.chdir(tmp_path)
    for name in ('a.jpg', 'c.webp', 'more/d.jpg'):
        photograph(tmp_path / name)
    out = Path('predictions')
    rows = run(model, '.', out=out, threshold=1.0)
    assert [row['image'] for row in rows] == ['a.jpg', 'c.webp', 'more/d.jpg']
    assert [Path(row['drawn']).name for row in rows] == ['a.jpg', 'c.webp.png', 'd.jpg']
    first = files(tmp_path)
    assert run(model, '.', out=out, threshold=1.0) == rows
    assert files(tmp_path) == first
    # Other images in between, and a kill, after which there is no list.
    assert len(run(model, 'a.jpg', out=out, threshold=1.0)) == 1
    assert json.loads((out / 'predictions.json').read_text()) == rows[:1]
    (out / 'predictions.json').unlink()
    assert run(model, '.', out=out, threshold=1.0) == rows
    assert files(tmp_path) == first


# Names of drawings


def test_images_of_one_name_are_all_kept(model, tmp_path):
    for k, folder in enumerate(('a', 'b', 'b/x', 'c/x')):
        photograph(tmp_path / folder / 'i.png', seed=k)
    sources = [tmp_path / name for name in 'abc']
    rows = run(model, *sources, tmp_path / 'a/i.png', out=tmp_path / 'o', threshold=1.0)
    assert [row['image'] for row in rows] == [
        str(tmp_path / name) for name in ('a/i.png', 'b/i.png', 'b/x/i.png', 'c/x/i.png')
    ]
    assert [Path(row['drawn']).name for row in rows] == [
        'a_i.png',
        'b_i.png',
        'x_i.png',
        'c_x_i.png',
    ]
    for row in rows:
        drawn, image = cv2.imread(row['drawn']), cv2.imread(row['image'])
        assert np.array_equal(drawn[3::6, 3::6], image)


@pytest.mark.parametrize(
    ('images', 'names'),
    [
        (['a.gif', 'a.bmp', 'a.png', 'a.JPG'], ['a.gif.png', 'a.bmp.png', 'a.png', 'a.JPG']),
        (['s/a.gif', 's/a.gif.png'], ['s_a.gif.png', '2_a.gif.png']),
        (['a/A.png', 'b/a.png'], ['a_A.png', 'b_a.png']),
        (['x/y/z/i.jpg', 'w/y/z/i.jpg', 'v/y/z/i.jpg'], None),
        (['a/b_c.png', 'a_b/c.png', 'c.png', 'b_c.png'], None),
        (['猫 1/犬 x.png', '猫 2/犬 x.png'], ['猫 1_犬 x.png', '猫 2_犬 x.png']),
    ],
)
def test_no_two_drawings_have_one_name(images, names):
    made = predict.drawing_names([Path('/') / image for image in images])
    assert len({name.casefold() for name in made}) == len(images)
    assert all(name.endswith(('.png', '.jpg', '.JPG')) and '/' not in name for name in made)
    if names and names[0].startswith('s_'):
        assert made[0] == names[0] and made[1].endswith('a.gif.png')
    elif names:
        assert made == names


# Kinds of images


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(path, exif=exif, quality=95)


def sixteen_bits(path: Path) -> None:
    cv2.imwrite(str(path), (np.arange(64 * 96, dtype=np.uint16) * 10).reshape(64, 96))


def of_mode(mode: str):
    def write(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 4), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)

    return write


KINDS = {
    'turned.jpg': turned,
    '16.png': sixteen_bits,
    'grey.png': of_mode('L'),
    'transparent.png': of_mode('RGBA'),
    'palette.gif': of_mode('P'),
    'a.tiff': of_mode('RGB'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_boxes_are_in_the_pixels_that_training_sees(model, kind, tmp_path):
    """They are those of the same picture in a plain file."""
    KINDS[kind](tmp_path / kind)
    pixels = read_image(tmp_path / kind)
    assert pixels.shape == ((96, 64, 3) if kind == 'turned.jpg' else (64, 96, 3))
    Image.fromarray(pixels).save(tmp_path / 'plain.png')
    row, plain = run(model, tmp_path / kind, tmp_path / 'plain.png', out=tmp_path / 'o')
    assert row['objects'] == plain['objects'] != []
    drawn, expected = cv2.imread(row['drawn']), cv2.imread(plain['drawn'])
    assert drawn.shape == expected.shape == (6 * pixels.shape[0], 6 * pixels.shape[1], 3)
    assert np.abs(drawn.astype(int) - expected).mean() < 20  # JPEG's; of another picture 80


def test_a_config_may_read_images_unturned(model, tmp_path, monkeypatch):
    turned(tmp_path / 'a.jpg')
    step = model.cfg.data.test.pipeline[0]
    monkeypatch.setitem(step, 'color_type', 'color_ignore_orientation')
    (row,) = run(model, tmp_path / 'a.jpg', out=tmp_path / 'o')
    assert cv2.imread(row['drawn']).shape == (6 * 64, 6 * 96, 3)


@pytest.mark.parametrize(
    'name', ['$\\frac$5', '$x$ y', 'a_b^{c', '<b>', '%s {0}', 'x\\frac', '汉字', 'it\'s "q"', 'a/b']
)
def test_names_of_classes_are_drawn_as_they_are(model, name, tmp_path, monkeypatch):
    monkeypatch.setattr(model, 'CLASSES', [name] * 10)
    photograph(tmp_path / 'a.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        (row,) = predict.predict(model, [tmp_path / 'a.png'], tmp_path / 'o', threshold=0.0)
    assert {item['class'] for item in row['objects']} == {name}
    assert json.loads((tmp_path / 'o/predictions.json').read_text()) == [row]


# What cannot be read


@pytest.mark.long
def test_bad_images_are_named_at_the_end_and_the_others_are_kept(model, tmp_path):
    folder = tmp_path / 'photos'
    for name in ('a.png', 'c.jpg', 'e.png'):
        photograph(folder / name)
    (folder / 'b.png').write_bytes(b'')
    (folder / 'd.jpg').write_bytes((folder / 'c.jpg').read_bytes()[:-300])
    photograph(folder / 'thin.png').write_bytes(
        cv2.imencode('.png', np.zeros((1, 3000, 3), np.uint8))[1].tobytes()
    )
    (folder / 'gone.png').symlink_to('nowhere.png')
    other = os.fsencode(folder) + b'/\xc0\xff.png'
    Path(os.fsdecode(other)).write_bytes((folder / 'a.png').read_bytes())
    command = ['predict', folder, '--checkpoint', model.path, '--out', tmp_path / 'o']
    done = CliRunner().invoke(main, [*map(str, command), '--threshold', '0.001'])
    assert done.exit_code == 1, done.output
    assert [line.split(' -> ')[0] for line in done.stdout.splitlines()] == [
        str(folder / name) for name in ('a.png', 'c.jpg', 'e.png')
    ]
    first, *lines = done.stderr.splitlines()
    assert '5 of 8 images have no predictions' in first and 'predictions.json' in first
    for name, problem in {
        'b.png': 'is empty, cut short, damaged or not an image',
        'd.jpg': 'is empty, cut short, damaged or not an image',
        'gone.png': 'cannot be read (No such file or directory)',
        'thin.png': 'is too thin to be resized (3000 x 1 pixels)',
        '\ufffd\ufffd.png': 'has a name that is not UTF-8: rename it',
    }.items():
        assert f'  - {folder / name} {problem}' in lines
    assert len(lines) == 5
    rows = json.loads((tmp_path / 'o/predictions.json').read_text())
    assert [Path(row['image']).name for row in rows] == ['a.png', 'c.jpg', 'e.png']
    assert files(tmp_path / 'o').keys() == {'a.png', 'c.jpg', 'e.png', 'predictions.json'}


def test_after_ctrl_c_the_list_has_what_was_drawn(model, tmp_path, monkeypatch):
    for name in 'abc':
        photograph(tmp_path / f'photos/{name}.png')
    (tmp_path / 'photos/0.png').write_bytes(b'')
    calls = []

    def interrupted(detector, image):
        calls.append(image)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return inference_detector(detector, image)

    monkeypatch.setattr(predict, 'inference_detector', interrupted)
    command = ['predict', tmp_path / 'photos', '--checkpoint', model.path, '--out', tmp_path / 'o']
    done = CliRunner().invoke(main, [*map(str, command)])
    assert done.exit_code == 130 and 'Traceback' not in done.output
    (row,) = json.loads((tmp_path / 'o/predictions.json').read_text())
    assert row['image'] == str(tmp_path / 'photos/a.png') and Path(row['drawn']).is_file()
    rows = predict.predict(model, [tmp_path / 'photos'], tmp_path / 'p')
    next(rows)
    rows.close()  # a caller who has seen enough
    assert len(json.loads((tmp_path / 'p/predictions.json').read_text())) == 1


def test_an_interruption_at_the_first_image_leaves_the_list_as_it_was(model, tmp_path, monkeypatch):
    photograph(tmp_path / 'a.png')
    rows = run(model, tmp_path / 'a.png', out=tmp_path / 'o')

    def interrupted(detector, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, 'inference_detector', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / 'a.png', out=tmp_path / 'o')
    assert json.loads((tmp_path / 'o/predictions.json').read_text()) == rows


# Which images


def test_a_folder_stands_for_all_images_in_it(model, tmp_path, monkeypatch):
    names = ('z.TIF', '猫/a b.png', '猫/犬 と/鳥 1.JPG')
    for name in names:
        photograph(tmp_path / 'my photos' / name)
    for name in ('.git/a.png', '猫/.ipynb_checkpoints/a.png', '猫/._a b.png'):
        photograph(tmp_path / 'my photos' / name)
    (tmp_path / 'my photos/folder.png').mkdir()
    (tmp_path / 'my photos/notes.txt').write_text('')
    monkeypatch.setenv('HOME', str(tmp_path))
    rows = run(model, '~/my photos', out='~/出 力')
    assert [row['image'] for row in rows] == [str(tmp_path / 'my photos' / n) for n in names]
    assert files(tmp_path / '出 力').keys() == {
        '鳥 1.JPG',
        'a b.png',
        'z.TIF.png',
        'predictions.json',
    }


def test_all_sources_that_are_none_are_named_at_once(trained, tmp_path):
    model = predict.detector(trained[0])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/notes.txt').write_text('')
    sources = {
        tmp_path / 'empty': r'no images in this folder or below it \(\.jpg',
        tmp_path / 'gone.png': 'no such file or folder',
        'https://example.org/a.jpg': 'is a URL: fetch the image, and name its file',
        f'{tmp_path}/*.jpg': 'no such file. Give the pattern without quotes, .* a folder for all images',
    }
    with pytest.raises(MtpdError) as refusal:
        predict.predict(model, sources, tmp_path / 'out')
    lines = str(refusal.value).splitlines()
    for line, (source, message) in zip(lines, sources.items(), strict=True):
        assert line.startswith(str(source))
        assert re.search(message, line), line
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('threshold', ['30', '-0.1'])
def test_a_threshold_is_from_0_to_1(threshold, tmp_path):
    command = ['predict', 'a.png', '--checkpoint', 'x.pth', '--threshold', threshold]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and 'is not in the range 0<=x<=1' in done.output


def test_a_config_in_a_checkpoint_is_not_run(trained, tmp_path):
    state = checkpoints.load_checkpoint(trained[0])
    mark = tmp_path / 'ran'
    state['meta']['config'] = f'__import__("pathlib").Path({str(mark)!r}).touch()\nmodel = {{}}\n'
    torch.save(state, tmp_path / 'evil.pth')
    with pytest.raises(MtpdError, match=r'is not run\. Give a config with --config'):
        predict.detector(tmp_path / 'evil.pth')
    assert not mark.exists()
    state['meta'] = {}
    torch.save(state, tmp_path / 'bare.pth')
    with pytest.raises(MtpdError, match='does not name its detector'):
        predict.detector(tmp_path / 'bare.pth')


def test_the_command_says_what_is_where(trained, tmp_path):
    path, folder, _ = trained
    arguments = ['predict', folder, '--checkpoint', path, '--out', tmp_path, '--threshold', '0.001']
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 3
    assert str(tmp_path) in done.output


def test_recipes_are_listed_with_the_papers_ap():
    done = CliRunner().invoke(main, ['recipes'])
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_t]*/*.py')}
    assert set(lines) == recipes
    assert lines['configs/paper/retinanet_r50__swint_swins.py'].endswith(
        "(the authors' model on COCO: 42.0 AP)"
    )
    assert 'pocket size' in lines[MINI]
