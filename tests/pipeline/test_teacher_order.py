"""Adaptation costs against an explicit least-squares solve; sequences against enumeration."""

import numpy as np
import pytest

from mtpd.analysis.run import load_run
from mtpd.config.recipe import load_recipe
from mtpd.distill.teacher_sequence import choose_sequence
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.run import options_text, recipe_steps, run_recipe
from mtpd.pipeline.teacher_order import (
    adaptation_costs,
    order_conclusion,
    resolve_auto_arms,
    suggest_sequence,
)
from mtpd.utils.files import read_json, write_json


def table(cost, names=('student', 'near', 'far')):
    return {'detectors': list(names), 'cost': cost}


def test_no_useful_teacher_between_means_direct_distillation():
    costs = table([[0, 0.9, 0.3], [0.9, 0, 0.4], [0.3, 0.4, 0]])
    ap = {'near': 0.4, 'far': 0.5}
    for method, reason in (
        ('backward_greedy', 'No teacher left is nearer to the student than far.'),
        ('shortest_path', 'The path student → far has the least sum of cost^2, 0.090.'),
    ):
        choice = choose_sequence(costs, ap, method=method)
        assert choice['sequence'] == ['far']
        assert choice['reasons'][1:] == [reason, 'So it is direct distillation.']
        text = order_conclusion(choice | {'check': choice}, {})
        assert 'suggest direct distillation from far: no other teacher helps before it' in text


def test_one_teacher_is_distilled_from_directly():
    costs = table([[0, 0.5], [0.5, 0]], ('student', 'only')) | {
        'replicates': [[[0, 0.5], [0.5, 0]]]
    }
    for method in ('backward_greedy', 'shortest_path'):
        choice = choose_sequence(costs, {'only': 0.4}, method=method)
        assert choice['sequence'] == ['only']
        assert choice['reasons'] == ['only is the only teacher of the pool: direct distillation.']
        text = order_conclusion(choice | {'check': choice}, {'only': 'the one'})
        assert text == 'The pool has one teacher: direct distillation from the one.'
    with pytest.raises(MtpdError, match='the pool of teachers is empty'):
        choose_sequence(table([[0]], ('student',)), {})


def test_the_conclusion_says_what_was_chosen_and_how_sure():
    first = [[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]]
    other = [[0, 0.95, 0.9], [0.95, 0, 0.4], [0.9, 0.4, 0]]
    ap = {'near': 0.4, 'far': 0.5}
    costs = table(first) | {'replicates': [first] * 7 + [other] * 3}
    choice = choose_sequence(costs, ap)
    check = choose_sequence(costs, ap, method='shortest_path')
    text = order_conclusion(choice | {'check': check}, {'near': 'N', 'far': 'F'})
    assert 'suggest N → F. 70 % of the bootstrap samples lead to it. The other search' in text
    assert '(shortest path) agrees. On these images' in text
    assert 'a tie with F (30 %)' in text
    alone = choose_sequence(table(other), ap)
    text = order_conclusion(alone | {'check': check}, {'near': 'N', 'far': 'F'})
    assert 'direct distillation from F' in text and 'prefers N → F' in text


MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
AUTO = {'arms': {'_delete_': True, 'auto': {'label': 'chosen', 'teachers': 'auto'}}}


def test_an_arm_gets_the_chosen_teachers(tmp_path):
    recipe = load_recipe(MINI, AUTO)
    with pytest.raises(RecipeError, match='chosen by adaptation cost'):
        recipe.arm('auto', 1)
    assert [step.title for step in recipe_steps(recipe, tmp_path)][-1] == '03_teacher_order'
    write_json(tmp_path / 'order' / 'sequence.json', {'sequence': ['rx101']})
    resolved = resolve_auto_arms(recipe, tmp_path)
    arm = resolved.arm('auto', 1)
    assert (arm.teachers, arm.label, arm.stage_updates) == (('rx101',), 'chosen: rx101', 1200)
    assert '04_distill_stage__auto_1' in [step.title for step in recipe_steps(resolved, tmp_path)]
    assert resolve_auto_arms(resolved, tmp_path) is resolved
    again = load_recipe(MINI, options_text(resolved))  # as its notebooks get it
    assert again.arms == resolved.arms


def test_an_arm_to_be_chosen_must_divide():
    with pytest.raises(RecipeError, match=r'may get 2 stages .* which do not divide'):
        load_recipe(MINI, AUTO | {'schedule.arm': 601})
    with pytest.raises(RecipeError, match=r"'atuo': a list of teachers is needed"):
        load_recipe(MINI, {'arms.direct.teachers': 'atuo'})


@pytest.mark.slow
def test_a_run_chooses_and_goes_on(tmp_path):
    small = {'data.scenes.val': 16, 'data.scenes.train': 32, 'order.images': 16}
    run = load_run(run_recipe(load_recipe(MINI, AUTO | small), tmp_path, smoke=True))
    chosen = read_json(tmp_path / 'order' / 'sequence.json')['sequence']
    assert run.arms[0]['teachers'] == chosen and run.state == 'complete'
    stages = [step['name'] for step in run.steps if step['name'].startswith('04')]
    assert stages == [f'04_distill_stage__auto_{k + 1}' for k in range(len(chosen))]
    lines = []
    run_recipe(load_recipe(MINI, AUTO | small), tmp_path, smoke=True, echo=lines.append)
    assert sum('done before' in line for line in lines) == len(run.steps)


@pytest.mark.slow
def test_costs_of_a_recipe(tmp_path):
    """The shipped teachers and an untrained student on DigitScenes: files, intervals, too few images."""
    recipe = load_recipe(
        MINI,
        {
            'schedule.baseline': 2,
            'order.images': 16,
            'data.scenes.val': 16,
            'data.scenes.train': 32,
        },
    )
    costs = adaptation_costs(recipe, tmp_path)
    assert costs['images'] == 16 and costs['needed'] > 16
    low, cost, high = (np.array(costs[key]) for key in ('low', 'cost', 'high'))
    off = ~np.eye(3, dtype=bool)
    assert (low <= high).all() and (low[off] < cost[off] + 0.2).all()
    assert sorted(costs['levels']) == ['16', '32', '8']
    choice = suggest_sequence(recipe, costs, tmp_path)
    assert choice['sequence'][-1] == 'rx101' and choice['ap']['rx101'] > choice['ap']['r101']
    assert {p.name for p in (tmp_path / 'order').iterdir()} == {'costs.json', 'sequence.json'}
