"""The reading side of a run directory: every number in a figure, table or sentence comes from here.

Files hold fractions in 0..1 (pycocotools' convention); this module turns them into AP points 0..100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..config.settings import read_settings
from ..errors import MtpdError
from ..pipeline.status import may_be_alive
from ..utils.files import read_json, read_log
from ..utils.paths import ROOT, display_path
from .published import paper_figures

MEASURED_TIMES = ('seconds', 'ms_per_image')  # keys of `Run.results` that differ between equal runs
# Column name -> key in metrics.json.
AP_KEYS = {
    'AP': 'bbox_mAP',
    'AP50': 'bbox_mAP_50',
    'AP75': 'bbox_mAP_75',
    'AP_s': 'bbox_mAP_s',
    'AP_m': 'bbox_mAP_m',
    'AP_l': 'bbox_mAP_l',
    'mask_AP': 'segm_mAP',
}


def ap_points(metrics: dict | None) -> dict[str, float | None]:
    """The AP columns of a metrics.json in points 0..100, None where undefined."""
    values = {name: (metrics or {}).get(key) for name, key in AP_KEYS.items()}
    return {name: None if value is None else 100 * value for name, value in values.items()}


def load_run(path: str | Path) -> Run:
    """Open a run directory, or a folder that `mtpd train` made. Raises MtpdError when `path` is neither."""
    path = Path(path)
    status = read_json(path / 'status.json', {})
    if (path / 'run.json').is_file():
        info = read_json(path / 'run.json')
    elif is_run(path):
        info = _training_info(path, status)
    else:
        # Two levels down only where runs are: any other folder may be large.
        deep = ['*/*/run.json'] if path.resolve() == (ROOT / 'runs').resolve() else []
        runs = [
            file.parent for pattern in (*deep, '*/run.json') for file in sorted(path.glob(pattern))
        ]
        hint = f' Did you mean {runs[-1]}?' if runs else ''
        what = 'has no run.json' if path.is_dir() else 'does not exist'
        raise MtpdError(
            f'{path} is not a run: it {what}.{hint} First run `make demo`, or `mtpd run RECIPE`.'
        )
    return Run(path, info, status, read_json(path / 'environment.json', {}))


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory, or one that `mtpd train` made of a recipe (recipe.py) or of an mmdet config (config.py)."""
    trained = any((path / name).is_dir() for name in ('detectors', 'stages'))
    return (
        (path / 'run.json').is_file()
        or ((path / 'recipe.py').is_file() and trained)
        or ((path / 'config.py').is_file() and (path / 'log.json').is_file())
    )


def _training_info(path: Path, status: dict) -> dict:
    """What run.json would say of a folder that `mtpd train` made. No code of its recipe.py or config.py runs."""
    more = {'is_training': True}
    if 'command' in status:
        more['command'] = status['command']
    if not (path / 'recipe.py').is_file():
        name = path.resolve().name
        label = {'name': 'model', 'role': 'student', 'label': name, 'updates': None}
        info = {'name': name, 'title': f'Training of {name}', 'recipe': display_path(path)}
        return info | {'arms': [], 'detectors': [label], 'paper': {}, 'is_plain': True} | more
    if read_settings(path / 'recipe.py') is None:  # raises where it is more than literals
        raise MtpdError(f'{path}/recipe.py is missing.')
    from ..config.recipe import load_recipe
    from ..pipeline.run_dir import run_info

    return run_info(load_recipe(path / 'recipe.py')) | more


@dataclass(frozen=True)
class Run:
    """A run directory, read when asked: a run in progress shows what is there so far."""

    path: Path
    info: dict
    status: dict
    environment: dict

    @property
    def arms(self) -> list[dict]:
        return self.info.get('arms', [])

    def arm(self, name: str = '') -> dict:
        """An arm as run.json has it; without a name the progressive one, else the last. MtpdError if there is none."""
        kinds = arm_kinds(self.arms)
        if name:
            arms = [arm for arm in self.arms if arm['name'] == name]
        else:
            progressive = [arm for arm in self.arms if kinds[arm['name']] == 'progressive']
            arms = progressive or self.arms
        if not arms:
            names = ', '.join(kinds) or 'none'
            raise MtpdError(f'{self.path} has no arm {name!r}. There are: {names}.')
        return arms[-1]

    @property
    def student(self) -> str | None:
        """Name of the student among the detectors."""
        students = [d['name'] for d in self.info.get('detectors', []) if d['role'] == 'student']
        return students[0] if students else None

    @property
    def steps(self) -> list[dict]:
        return self.status.get('steps', [])

    @property
    def state(self) -> str:
        """'complete', 'failed', 'running', 'stopped' (interrupted, or its process is gone) or 'unknown'."""
        states = {step['state'] for step in self.steps}
        if 'failed' in states or self.status.get('state') == 'failed':
            return 'failed'
        if states == {'done'} or (not states and self.status.get('state') == 'done'):
            return 'complete'
        if self.status.get('state') == 'running':
            return 'running' if may_be_alive(self.status) else 'stopped'
        return 'stopped' if states else 'unknown'

    def label(self, name: str | None) -> str:
        """The readable name of a detector; None is the control, which has no teacher."""
        if name is None:
            return 'no teacher'
        labels = {d['name']: d.get('label') or d['name'] for d in self.info.get('detectors', [])}
        return labels.get(name, name)

    def stage_dirs(self, arm: str) -> list[Path]:
        """The folders of an arm's stages in order, those that exist."""
        teachers = next((a['teachers'] for a in self.arms if a['name'] == arm), [])
        names = [f'{k}_{teacher or "no_teacher"}' for k, teacher in enumerate(teachers, 1)]
        return [d for d in (self.path / 'stages' / arm / n for n in names) if d.is_dir()]

    def detector_dir(self, name: str) -> Path:
        """Where the files of a detector lie; of a plain mmdet config's training at the top."""
        return self.path if self.info.get('is_plain') else self.path / 'detectors' / name

    def metrics(self, kind: str, name: str) -> dict | None:
        """metrics.json (fractions 0..1) of `kind` 'detector' or 'arm' (its last stage), or None."""
        if kind == 'detector':
            return read_json(self.detector_dir(name) / 'metrics.json')
        if kind != 'arm':
            raise ValueError(f"kind must be 'detector' or 'arm', not {kind!r}")
        arm = next((a for a in self.arms if a['name'] == name), None)
        folders = self.stage_dirs(name)
        if arm is None or not folders or len(folders) < len(arm['teachers']):
            return None
        return read_json(folders[-1] / 'metrics.json')

    def results(self) -> list[dict]:
        """One row for the baseline, each teacher and each arm.

        Keys: name, label, role ('baseline', 'teacher', 'arm'), kind (`arm_kinds`), stages (teachers,
        None for no teacher), updates (done; of a teacher that came trained, as the recipe says), seconds (of training),
        AP AP50 AP75 AP_s AP_m AP_l mask_AP (points 0..100), parameters (count), gflops, ms_per_image. A value that is
        not there yet is None. A key gets a column by an entry in `mtpd.report.tables.COLUMNS`; one of a measured time is also
        named in `MEASURED_TIMES`.
        """
        rows = []
        detectors = self.info.get('detectors', [])
        for detector in sorted(detectors, key=lambda d: d['role'] != 'student'):
            name = detector['name']
            log = read_log(self.detector_dir(name) / 'log.json')
            metrics = self.metrics('detector', name)
            last = log[-1] if log else {}
            updates, planned = last.get('update', detector.get('updates')), last.get('updates')
            if metrics and isinstance(planned, int):
                updates = planned  # trained; killed at its end, it may lack the log's last row
            rows.append(
                {'name': name, 'label': self.label(name), 'kind': None, 'stages': []}
                | {'role': 'baseline' if detector['role'] == 'student' else 'teacher'}
                | {'updates': updates, 'seconds': _training_seconds(self.detector_dir(name))}
                | ap_points(metrics)
                | self._model(name)
            )
        kinds = arm_kinds(self.arms)
        for arm in self.arms:
            metrics = self.metrics('arm', arm['name'])
            done = arm.get('updates') if metrics else self._updates_done(arm['name'])
            rows.append(
                {'name': arm['name'], 'label': arm.get('label') or arm['name'], 'role': 'arm'}
                | {'kind': kinds[arm['name']], 'stages': arm['teachers'], 'updates': done}
                | {'seconds': self.training_seconds(arm['name'])}
                | ap_points(metrics)
                | self._model(self.student)
            )
        return rows

    def training_seconds(self, arm: str) -> float | None:
        """The training seconds of all stages of an arm; None while one is not known."""
        values = [_training_seconds(folder) for folder in self.stage_dirs(arm)]
        return sum(values) if values and None not in values else None

    def _updates_done(self, arm: str) -> int | None:
        """The updates of an arm that is not at its end; None before the first checkpoint."""
        done = [read_json(folder / 'training.json', {}) for folder in self.stage_dirs(arm)]
        return sum(training.get('update', 0) for training in done) or None

    def _model(self, name: str | None) -> dict:
        model = read_json(self.detector_dir(str(name)) / 'model.json', {})
        return {key: model.get(key) for key in ('parameters', 'gflops', 'ms_per_image')}

    def curves(self, arm: str | None = None) -> list[dict] | dict[str, list[dict]]:
        """Log rows of an arm over its stages; without `arm`, {label: rows} of all that have any.

        `update` counts on over the stages; added are stage (1..), teacher (label), detection and
        distillation (losses, None where absent).
        """
        if arm is None:
            curves = {a.get('label') or a['name']: self.curves(a['name']) for a in self.arms}
            return {label: rows for label, rows in curves.items() if rows}
        rows, offset = [], 0
        for folder, stage in self._stages(arm):
            for row in read_log(folder / 'log.json'):
                detection, distillation = split_loss(row)
                rows.append(
                    row
                    | {'update': offset + row['update'], 'stage': stage['stage']}
                    | {'teacher': self.label(stage['teacher'])}
                    | {'detection': detection, 'distillation': distillation}
                )
            offset += stage['updates']
        return rows

    def detector_curves(self) -> dict[str, list[dict]]:
        """{label: log rows} of the detectors that were trained on their own here, as `loss_rows` gives them."""
        curves = {
            self.label(item['name']): loss_rows(self.detector_dir(item['name']) / 'log.json')
            for item in self.info.get('detectors', [])
        }
        return {label: rows for label, rows in curves.items() if rows}

    def stage_aps(self, arm: str | None = None) -> list[dict] | dict[str, list[dict]]:
        """AP along an arm: the baseline (0 updates), then each evaluated stage.

        Rows: stage, teacher (label), label, updates (since the baseline), AP (points). Without
        `arm`, {label: rows} of all arms that have a stage evaluated.
        """
        if arm is None:
            aps = {a.get('label') or a['name']: self.stage_aps(a['name']) for a in self.arms}
            return {label: rows for label, rows in aps.items() if rows and rows[-1]['stage']}
        base = ap_points(self.metrics('detector', self.student) if self.student else None)['AP']
        rows = [{'stage': 0, 'teacher': None, 'label': 'baseline', 'updates': 0, 'AP': base}]
        updates = 0
        for folder, stage in self._stages(arm):
            updates += stage['updates']
            teacher = self.label(stage['teacher'])
            label = 'no teacher' if stage['teacher'] is None else f'after {teacher}'
            ap = ap_points(read_json(folder / 'metrics.json'))['AP']
            row = {'stage': stage['stage'], 'teacher': teacher, 'label': label}
            rows.append(row | {'updates': updates, 'AP': ap})
        return [row for row in rows if row['AP'] is not None]

    def _stages(self, arm: str) -> list[tuple[Path, dict]]:
        plan = next(a for a in self.arms if a['name'] == arm)
        share = (plan.get('updates') or 0) // max(len(plan['teachers']), 1)
        stages = []
        for folder in self.stage_dirs(arm):
            k = int(folder.name.split('_', 1)[0])
            written = read_json(folder / 'stage.json', {})
            updates = written.get('updates') or share
            stages.append(
                (folder, {'stage': k, 'teacher': plan['teachers'][k - 1], 'updates': updates})
            )
        return stages

    @property
    def paper(self) -> dict:
        """The paper's figures for this recipe, as `published.paper_figures` has them."""
        return paper_figures(self.info.get('paper'))

    def key_aps(self) -> dict:
        """The figures of this run that belong beside `paper`: baseline, control (no teacher), direct, progressive, walk_through.

        AP points; `walk_through` has the progressive arm's from the baseline on. Keys without a value are left out.
        """
        rows = self.results()
        by_kind = {r['kind']: r for r in rows if r['kind'] not in (None, 'other')}
        aps = {
            kind: by_kind.get(kind, {}).get('AP') for kind in ('control', 'direct', 'progressive')
        }
        aps['baseline'] = next((r['AP'] for r in rows if r['role'] == 'baseline'), None)
        if 'progressive' in by_kind:
            walk = [row['AP'] for row in self.stage_aps(by_kind['progressive']['name'])]
            aps['walk_through'] = walk if len(walk) > 1 and aps['baseline'] is not None else None
        return {key: value for key, value in aps.items() if value is not None}


def _training_seconds(folder: Path) -> float | None:
    return read_json(folder / 'training.json', {}).get('seconds')


# Losses in a training's log.json.

# A distillation loss of any method with its FPN level, as `plan.distill_cfg` names them.
DISTILLATION_LOSS = re.compile(r'loss_.+_fpn_(\d+)')


def split_loss(row: dict) -> tuple[float | None, float | None]:
    """Detection loss and distillation loss of a log row (None: not in the row).

    What mmdet trains is what has 'loss' in its name: also a cascade's ``s0.loss_cls``.
    """
    parts = {k: v for k, v in row.items() if 'loss' in k and k != 'loss' and v is not None}
    distillation = [v for k, v in parts.items() if DISTILLATION_LOSS.fullmatch(k)]
    detection = [v for k, v in parts.items() if not DISTILLATION_LOSS.fullmatch(k)]
    if detection:
        total = sum(detection)
    else:
        total = None if row.get('loss') is None else row['loss'] - sum(distillation)
    return total, (sum(distillation) if distillation else None)


def loss_rows(log: str | Path, teacher: str | None = None) -> list[dict]:
    """Rows of one training run's log.json for `plots.loss_curves`."""
    rows = []
    for row in read_log(Path(log)):
        detection, distillation = split_loss(row)
        rows.append(
            row
            | {'stage': 1, 'teacher': teacher}
            | {'detection': detection, 'distillation': distillation}
        )
    return rows


# Arms.


def arm_kinds(arms: list[dict]) -> dict[str, str]:
    """What each arm is in the comparison: 'control', 'direct', 'progressive' or 'other'.

    progressive: the arm of that name, else the first with several different teachers; direct: the last
    teacher of it alone; control: no teacher at all.
    """
    several = [a for a in arms if len({t for t in a['teachers'] if t is not None}) > 1]
    main = next((a for a in several if a['name'] == 'progressive'), several[0] if several else None)
    kinds = {}
    for arm in arms:
        teachers = [t for t in arm['teachers'] if t is not None]
        if not teachers:
            kinds[arm['name']] = 'control' if arm['teachers'] else 'other'  # still to be chosen
        elif arm is main:
            kinds[arm['name']] = 'progressive'
        elif len(arm['teachers']) == 1 and (main is None or teachers == [main['teachers'][-1]]):
            kinds[arm['name']] = 'direct'
        else:
            kinds[arm['name']] = 'other'
    return kinds


def class_aps(run) -> tuple[dict, dict, tuple[str, str]]:
    """AP by class of the arm without a teacher and of the best arm of a `Run`, and their labels, as `plots.per_class`
    takes them; empty before an arm is evaluated. Without such a control it is the best arm twice."""
    arms = [row for row in run.results() if row['role'] == 'arm' and row['AP'] is not None]
    if not arms:
        return {}, {}, ('no teacher', 'best arm')
    best = max(arms, key=lambda row: row['AP'])
    control = next((row for row in arms if row['kind'] == 'control'), best)
    aps = [run.metrics('arm', row['name'])['per_class']['bbox'] for row in (control, best)]
    return *aps, (control['label'], best['label'])
