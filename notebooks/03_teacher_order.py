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
# than one that is strong and far. The definition here is the kit's own, in the spirit of the paper's:
#
# $$C(A \to B) = \frac{\min_{W, b} \lVert W F_A + b - F_B \rVert^2}{\lVert F_B - \bar F_B \rVert^2}$$
#
# with $F$ the features of a level (the *neck*, a feature pyramid network or FPN, makes levels of one cell every 8, 16, 32, ...
# pixels), a row for each channel and a column for each cell of the images.
#
# **What to expect.** A matrix of costs, the sequence that they suggest with the reason of each step, and a prediction that the
# arms will test.

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
# Read a row as "from", a column as "to". In brackets a 95 % interval: a bootstrap over the images that
# measure. Detectors are compared at the FPN strides that both have.

# %%
plots.cost_matrix(list(labels.values()), costs['cost'], (costs['low'], costs['high']))

# %%
show_sentences(calibration_text(costs))

# %% [markdown]
# ## The sequence
#
# The last teacher is the one of highest AP. Before it goes, again and again, a teacher that is nearer to
# the student, the one that is nearest to its successor. The check is the path with the least sum of
# squared costs, found exactly.

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
# - Set `images` to 32: do the intervals still tell the teachers apart?
# - `mtpd run RECIPE --cfg-options arms.auto.label=suggested arms.auto.teachers=auto` adds an arm whose teachers the costs choose.
#
# Next: 04, a stage of distillation.
