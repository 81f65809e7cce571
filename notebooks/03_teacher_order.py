# %% [markdown]
# # 03 · Which teacher first?
#
# **Question.** How far apart are the detectors' features, and which sequence of teachers does that suggest?
#
# The *neck* of a detector, a feature pyramid network (FPN), gives feature maps at several *levels*, with one cell every 8, 16, 32,
# ... pixels. The *adaptation cost* from detector A to detector B is the share of the variance of B's neck features that is left
# unexplained by the best linear map (a 1 x 1 convolution) from A's features:
#
# $$C(A \to B) = \frac{\min_{W, b} \lVert W F_A + b - F_B \rVert^2}{\lVert F_B - \bar F_B \rVert^2}$$
#
# $F$ has the features of a level, a row for each channel and a column for each cell of the images. The cost is about 0 if A's
# features determine B's, and about 1 if they have nothing in common. The map is fitted on half of the images, and its cost is
# measured on the other half. No network is trained for it.
#
# MTPD's idea: a teacher that is near makes a better first teacher than one that is strong and far. This definition of the cost is
# the kit's own, in the spirit of the paper's.
#
# **What to expect.** A matrix of costs, and the sequence that they suggest, with a reason for each step. The sequence is a
# prediction that the arms test.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
images: int = 0  # validation images to compare features on; 0: as the recipe says

# %%
from mtpd import adaptation_costs, load_recipe, plots
from mtpd.analysis import calibration_text, order_conclusion, prepare_detector, suggest_sequence
from mtpd.report import markdown_table, show_sentences

plan = load_recipe(recipe, cfg_options, seed)
labels = {name: spec.get('label', name) for name, spec in plan.detectors.items()}
costs = adaptation_costs(plan, work_dir, images or None)

# %% [markdown]
# ## The costs
#
# Rows are "from", columns are "to". Brackets have a 95 % interval: a bootstrap over the images that the costs are measured on.
# Detectors are compared at the FPN strides that both have.

# %%
plots.cost_matrix(list(labels.values()), costs['cost'], (costs['low'], costs['high']))

# %%
show_sentences(calibration_text(costs))

# %% [markdown]
# ## The sequence
#
# The last teacher is the one of highest AP. By default the sequence is then built backward: each step adds, at the front, the
# teacher with the least cost to the one after it, among the teachers that are nearer to the student than that one. As a check, an
# exact search finds the path with the least sum of squared costs.

# %%
suggestion = suggest_sequence(plan, costs, work_dir)
ready = {name: prepare_detector(plan, name, work_dir) for name in plan.cfg.teachers}
rows = [
    {
        'teacher': labels[name],
        'its name in the recipe': name,
        'AP': 100 * suggestion['ap'][name],
        'parameters (millions)': made['model']['parameters'] / 1e6,
        'GFLOPs': made['model']['gflops'],
        'cost from the student': costs['cost'][0][costs['detectors'].index(name)],
    }
    for name, made in ready.items()
]
markdown_table(rows)

# %%
plots.sequence_graph(costs, suggestion['ap'], suggestion['sequence'], labels)

# %%
markdown_table(
    [{'step': reason} for reason in suggestion['reasons'] + suggestion['check']['reasons'][1:]]
)

# %%
show_sentences(
    '**Conclusion.**',
    order_conclusion(suggestion, labels),
    'This is a prediction: the arms of this run test it.',
)

# %% [markdown]
# **Try this**
#
# - Set `images` to 32. Do the intervals still separate the teachers?
# - `mtpd run RECIPE --cfg-options arms.auto.label=suggested arms.auto.teachers=auto` adds an arm with the suggested sequence.
#
# Next: 04, a stage of distillation.
