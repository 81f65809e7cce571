"""Where annotation files and images lie: the usual tools' layouts by themselves, others by a message that helps."""

import json
import re
import shlex

import pytest

from helpers.arranged import SINGLE, SPLIT, Files, arranged
from mtpd import load_recipe
from mtpd.config.schema import parse_overrides
from mtpd.data import layouts
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
NAMES = {'train': 'train', 'val': 'val'}


def recipe_of(root, **overrides):
    return load_recipe(MINI, {'data.root': str(root), **overrides})


def options_of(text: str) -> dict:
    """What a message says is to be typed after --cfg-options."""
    words = shlex.split(re.search(r'--cfg-options (.*?)(?: \(|$)', text)[1])
    return parse_overrides(' '.join(words))


@pytest.mark.parametrize('tool', SPLIT)
def test_a_layout_with_two_splits_is_recognised(tmp_path, tiny_coco, tool):
    train, val = SPLIT[tool]
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', train=train, val=val)
    recipe = recipe_of(root)
    assert recipe.data_problems() == []
    assert recipe.split('train') == (root / train.annotations, root / train.images)
    assert recipe.split('val') == (root / val.annotations, root / val.images)
    assert recipe.classes == ('cat', 'dog')


@pytest.mark.parametrize('tool', SINGLE)
def test_one_file_for_all_is_val_and_no_training(tmp_path, tiny_coco, tool):
    files = SINGLE[tool]
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', val=files)
    recipe = recipe_of(root)
    assert recipe.split('val') == (root / files.annotations, root / files.images)
    assert recipe.data_problems(training=False) == [] and recipe.classes == ('cat', 'dog')
    (problem,) = recipe.data_problems()
    assert f'`mtpd data split {root} {root}-split`' in problem
    assert options_of(problem) == {'data.root': f'{root}-split'}


def test_a_file_of_all_images_is_no_val_beside_a_train(tmp_path, tiny_coco):
    """It may hold the images that are trained on."""
    source = tiny_coco(tmp_path / 'coco')
    root = arranged(source, tmp_path / 'data', train=Files('train.json', 'images'))
    arranged(source, root, val=Files('annotations.json', 'images'))
    assert layouts.recognised_place(root, 'val') is None
    (problem,) = recipe_of(root).data_problems()
    assert 'data.splits.val.annotations=annotations.json' in problem
    assert recipe_of(root, **options_of(problem)).data_problems() == []


def test_a_train_alone_is_to_be_split(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'my data')
    (root / 'annotations/val.json').unlink()
    (problem,) = recipe_of(root).data_problems()
    assert 'val.json: no such file' in problem and 'Only train is there' in problem
    assert f"`mtpd data split '{root}' '{root}-split'`" in problem


@pytest.mark.parametrize(
    ('train', 'val'),
    [
        (Files('my labels/a set.json', 'pictures/one'), Files('my labels/b.json', 'pictures/two')),
        (Files('a.json', '1'), Files('b.json', '2017')),
    ],
)
def test_what_a_message_says_to_type_works(tmp_path, tiny_coco, train, val):
    """A split at a time: which of the two files is which is the user's to say."""
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', train=train, val=val)
    problems = recipe_of(root).data_problems()
    first, other = (options_of(problem) for problem in problems)
    assert first == {
        'data.splits.train.annotations': train.annotations,
        'data.splits.train.images': train.images,
    }
    assert (
        'train/_annotations.coco.json' in problems[0] and f'{val.annotations}, too' in problems[0]
    )
    right = {'data.splits.val.annotations': val.annotations, 'data.splits.val.images': val.images}
    assert other.keys() == right.keys()
    recipe = recipe_of(root, **first, **right)
    assert recipe.data_problems() == []
    assert recipe.split('val') == (root / val.annotations, root / val.images)


@pytest.mark.parametrize(
    ('files', 'words'),
    [
        (['train/Annotations/a.xml', 'train/JPEGImages/a.jpg'], 'VOC XML: docs/own-data.md'),
        (['labels/train/a.txt', 'images/train/a.jpg', 'data.yaml'], 'YOLO text: docs/own-data.md'),
        (['train/labels/a.txt', 'train/images/a.jpg'], 'YOLO text: docs/own-data.md'),
        (['README.txt', 'a.json'], 'data.splits.train.annotations=FILE.json'),
    ],
)
def test_other_formats_are_led_to_their_command(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{}')
    assert words in recipe_of(tmp_path).data_problems()[0]


def test_a_named_file_that_is_missing_is_named(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    place = {'annotations': 'annotations/vla.json', 'images': 'val'}
    (problem,) = recipe_of(root, **{'data.splits.val': place}).data_problems()
    assert f'{root}/annotations/vla.json: no such file' in problem
    assert 'data.splits.val.annotations' in problem


@pytest.mark.parametrize(
    ('tool', 'line'),
    [
        ('COCO', ''),
        ('names with a folder', ''),
        (
            'Roboflow',
            "Roboflow's layout: train/_annotations.coco.json, valid/_annotations.coco.json",
        ),
        (
            'CVAT with subsets',
            "COCO's layout: annotations/instances_Train.json, annotations/instances_Validation.json",
        ),
    ],
)
def test_what_was_recognised_is_a_line(tmp_path, tiny_coco, tool, line):
    train, val = SPLIT[tool]
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', train=train, val=val)
    assert layouts.describe_layout(root, NAMES) == (line and f'{root}: {line}')


def test_one_file_for_train_and_val_is_never_silent(tmp_path, tiny_coco):
    source = tiny_coco(tmp_path / 'coco')
    assert 'the same file' in layouts.describe_layout(source, {'train': 'train', 'val': 'train'})
    root = arranged(source, tmp_path / 'data', val=SINGLE['CVAT'])
    line = "CVAT's layout: annotations/instances_default.json, used as val"
    assert layouts.describe_layout(root, NAMES) == f'{root}: {line}'
    place = {'annotations': 'annotations/instances_default.json', 'images': 'images/default'}
    assert 'AP is measured on the training images' in layouts.describe_layout(
        root, {'train': place, 'val': place}
    )


def test_classes_come_from_train_where_there_is_one(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    file = root / 'annotations/val.json'
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {'categories': table['categories'][::-1]}))
    assert recipe_of(root).classes == ('cat', 'dog')
    (root / 'annotations/train.json').unlink()
    assert recipe_of(root).classes == ('dog', 'cat')
    file.unlink()
    with pytest.raises(MtpdError, match=r'val\.json: no such file.*--cfg-options'):
        _ = recipe_of(root).classes


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('{"annotations": [], "images": [{"id": 1, "file_name" : "a\\\\b.png"}]}', 'a/b.png'),
        (
            '{"images": [{"file_name": "gr\\u00fcn \\"1\\".png"}, {"file_name": "b"}]}',
            'grün "1".png',
        ),
        ('{"images": [{"file_name": 3}, {"file_name": "b.png"}]}', 'b.png'),
        ('{"images": []}', ''),
        ('', ''),
        ('"file_name": "' + 'a' * 5000 + '"', ''),
    ],
)
def test_the_first_image_is_read_without_parsing_the_file(tmp_path, text, name):
    file = tmp_path / 'a.json'
    file.write_text(text)
    assert layouts.first_image_name(file) == name
    file.write_text('{"file_name": "changed.png"}')
    assert layouts.first_image_name(file) == 'changed.png'
    assert layouts.first_image_name(tmp_path / 'none.json') == ''
