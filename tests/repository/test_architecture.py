"""docs/architecture.md lists what there is, and names say what they mean."""

import ast
import re

from mtpd.utils.paths import ROOT

FOLDERS = ('mtpd', 'tests', 'benchmarks', 'notebooks')
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py'))
# Names that say nothing by themselves. Functions must not have the second set either: "problems" of what?
EMPTY_NAMES = {'found', 'told', 'said', 'own', 'there', 'kept'}
EMPTY_FUNCTIONS = EMPTY_NAMES | {
    'problems',
    'everywhere',
    'of',
    'about',
    'held',
    'facts',
    'numbers',
}
# A key of `mtpd doctor --json`.
PUBLIC = {('mtpd/pipeline/doctor.py', 'found')}


def test_every_module_has_its_place_in_the_table_of_rooms():
    rows = re.findall(
        r'^\| `(\w+)/` \|[^|]*\|([^|]*)\|',
        (ROOT / 'docs/architecture.md').read_text(encoding='utf-8'),
        re.MULTILINE,
    )
    listed = {room: set(re.findall(r'`(\w+)/?`', files)) for room, files in rows}
    rooms = {path.parent for path in (ROOT / 'mtpd').glob('*/__init__.py')}
    assert listed.keys() == {room.name for room in rooms}
    for room in rooms:
        files = {path.stem for path in room.glob('*.py')} - {'__init__', '__main__'}
        folders = {path.parent.name for path in room.glob('*/__init__.py')}
        assert listed[room.name] == files | folders, room.name


def test_no_name_is_empty():
    empty = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name, forbidden = node.name, EMPTY_FUNCTIONS
            elif isinstance(node, ast.arg):
                name, forbidden = node.arg, EMPTY_NAMES
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name, forbidden = node.id, EMPTY_NAMES
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name, forbidden = node.attr, EMPTY_NAMES
            else:
                continue
            bare = name.strip('_')
            if bare in forbidden or bare.lower() in EMPTY_NAMES:
                empty.add((path.relative_to(ROOT).as_posix(), name))
    assert empty - PUBLIC == set()
