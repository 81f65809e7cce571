# %% [markdown]
# # 03 · Which teacher first?
#
# **Question.** How far are the detectors' features from each other's, and which sequence of teachers
# does that suggest?
#
# The *adaptation cost* from A to B is the share of the variance of B's neck features that the best
# linear map (a 1 x 1 convolution) from A's features leaves unexplained: about 0 if they say the same,
# about 1 if they have nothing in common. It is fitted on half of the images and measured on the other
# half, without training any network. MTPD's idea: a teacher that is near makes a better first teacher
# than one that is strong and far. The definition here is the kit's own, in the spirit of the paper's.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
images: int = 256  # validation images to compare features on

# %%
from mtpd import adaptation_costs, choose_sequence, load_recipe, plots
from mtpd.files import write_json
from mtpd.tables import say, table
from mtpd.train import prepare_detector

plan = load_recipe(recipe, cfg_options, seed)
run_dir = plan.run_dir(work_dir)
costs = adaptation_costs(plan, work_dir, images)

# %% [markdown]
# ## The costs
#
# Read a row as "from", a column as "to".

# %%
labels = [spec.get('label', name) for name, spec in plan.detectors.items()]
plots.cost_matrix(labels, costs['cost'])

# %% [markdown]
# ## The sequence
#
# The last teacher is the one of highest AP. Before it goes, again and again, a teacher that is nearer to
# the student, the one that is nearest to its successor. The check is the path with the least sum of
# squared costs, found exactly.

# %%
metrics = {name: prepare_detector(plan, name, work_dir)['metrics'] for name in plan.cfg.teachers}
ap = {name: found['bbox_mAP'] or 0.0 for name, found in metrics.items()}
greedy = choose_sequence(costs, ap)
exact = choose_sequence(costs, ap, method='shortest_path')
write_json(run_dir / 'order' / 'sequence.json', greedy)
table([{'step': reason} for reason in greedy['reasons'] + exact['reasons']])

# %%
names = {name: spec.get('label', name) for name, spec in plan.detectors.items()}
chosen = ' → '.join(names[name] for name in greedy['sequence'])
same = greedy['sequence'] == exact['sequence']
say(
    f'**Conclusion.** The costs suggest {chosen}.',
    'The exact search agrees.'
    if same
    else 'The exact search prefers ' + ' → '.join(names[name] for name in exact['sequence']) + '.',
    'This is a prediction: the arms of this run test it.',
)
