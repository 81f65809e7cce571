"""What the numbers of a run say, in words: also when the method does not win."""

from __future__ import annotations

# AP points: twice the largest standard deviation of an arm's difference from the control over five seeds of the pocket
# recipe (results/mini_retinanet_r50__r101_rx101/seeds.json). Another recipe needs its own seeds.
DECISIVE_AP = 1.0


def conclusion(rows: list[dict], seeds: int | None = None) -> str:
    """Sentences that follow from `Run.results()`: the best arm, and progressive against its controls.

    Args:
        rows: rows as `Run.results()` gives them, AP in points 0..100.
        seeds: number of runs that the rows are means of; None or 1 is a single run.
    """
    arms = [row for row in rows if row['role'] == 'arm']
    done = sorted((r for r in arms if r['AP'] is not None), key=lambda r: -r['AP'])
    if not done:
        return 'No arm has been evaluated yet, so there is nothing to conclude.'
    best = done[0]
    if len(done) > 1 and _gap(best, done[-1]) == 0:
        return f'All arms have the same AP, {best["AP"]:.1f}: nothing tells them apart.'
    text = [_best(best, next((r['AP'] for r in rows if r['role'] == 'baseline'), None))]
    lead = _gap(best, done[1]) if len(done) > 1 else 0.0
    kinds = {r['kind']: r for r in done if r['kind'] != 'other'}
    if 'progressive' in kinds:
        text.append(_progressive(kinds, best, lead))
    control = kinds.get('control')
    if control is best and len(done) > 1:
        text.append(
            'No arm with a teacher beats training on without one: distillation did not help.'
        )
    if len(done) > 1:
        text.append(_certainty(lead, done[1], seeds))
    missing = [r['label'] for r in arms if r['AP'] is None]
    if missing:
        text.append(f'Not evaluated, so not compared: {", ".join(missing)}.')
    return ' '.join(text)


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


def _best(best: dict, baseline: float | None) -> str:
    label = best['label'][:1].upper() + best['label'][1:]
    text = f'{label} is the best arm with AP {best["AP"]:.1f}'
    if baseline is None:
        return text + '.'
    return text + f', {_words(best["AP"], baseline)} the common baseline ({baseline:.1f}).'


def _progressive(kinds: dict[str, dict], best: dict, lead: float) -> str:
    row = kinds['progressive']
    others = [
        (kinds[kind], words)
        for kind, words in (
            ('control', 'training on without a teacher'),
            ('direct', 'distilling from the last teacher alone'),
        )
        if kind in kinds
    ]
    against = ' and '.join(
        f'{_words(row["AP"], other["AP"])} {words} ({other["AP"]:.1f})' for other, words in others
    )
    if row is best:
        verb = 'wins' if lead >= DECISIVE_AP else 'has the highest AP'
        return f'Progressive distillation {verb}: it is {against}.' if against else ''
    start = f'Progressive distillation ({row["label"]}, AP {row["AP"]:.1f}) does not win here'
    return f'{start}: it is {against}.' if against else f'{start}.'


def _certainty(lead: float, second: dict, seeds: int | None) -> str:
    if seeds and seeds > 1:
        rule = f'these are means over {seeds} seeds, so look at their spread before trusting it'
    else:
        rule = f'with one seed, differences below about {DECISIVE_AP:.0f} AP point decide nothing'
    only = 'only ' if lead < DECISIVE_AP else ''
    return f'The lead over {second["label"]} is {only}{lead:.1f} points; {rule}.'


def _gap(a: dict, b: dict) -> float:
    # Of the printed figures, so that a reader who subtracts them gets the same number.
    return round(round(a['AP'], 1) - round(b['AP'], 1), 1)


def _words(ap: float, other: float) -> str:
    gap = round(round(ap, 1) - round(other, 1), 1)
    if gap == 0:
        return 'level with'
    return f'{abs(gap):.1f} points {"above" if gap > 0 else "below"}'


def arm_kinds(arms: list[dict]) -> dict[str, str]:
    """What each arm is in the comparison: 'control', 'direct', 'progressive' or 'other'.

    progressive: the arm of that name, else the first with several teachers; direct: the last
    teacher of it alone; control: no teacher at all.
    """
    several = [a for a in arms if sum(t is not None for t in a['teachers']) > 1]
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
