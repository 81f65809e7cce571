# %% [markdown]
# # 05 · Results
#
# **Question.** Which arm makes the best student, and by how much?
#
# All arms continue the same baseline for the same number of updates on the same data. "No teacher" just
# trains on: what it gains is not distillation's doing.
#
# Each stage has its own learning rate schedule, warm-up and decay, which an arm of two stages goes through twice in the same
# number of updates.
#
# **What to expect.** The arms side by side, class by class, error by error, image by image; then beside the paper. It needs a run:
# where there is none, the next cell says which command makes it.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
compare: list[str] = []  # run folders of other methods or seeds; empty, those beside this one
checkpoint: str = ''  # a student to test as well, such as a released one
metrics: list[str] = []  # of that checkpoint, bbox and segm; empty, the recipe's
image: int = 8  # validation image to show detections on, in file order

# %%
from mtpd import load_recipe, plots
from mtpd.analysis import (
    chart_notes,
    checkpoint_detections,
    checkpoint_metrics,
    class_aps,
    compare_methods,
    count_objects,
    dataset_name,
    errors_by_detector,
    load_run_or_plan,
    methods_caption,
    objects_found_and_lost,
    paper_chart,
    paper_finding,
    paper_gains,
    paper_rows,
    paper_verdict,
    run_summary,
)
from mtpd.report import DetectionsView, markdown_table, show_sentences, show_with_controls

plan = load_recipe(recipe, cfg_options, seed)
run = load_run_or_plan(plan, work_dir, checkpoint)
rows = run.results()

# %%
markdown_table(rows, 'results')

# %%
plots.ap_by_arm(rows)

# %%
show_sentences(
    f'Numbers and figures of this page are of seed {plan.seed}; its conclusion is of all',
    'seeds that were run.',
)

# %% [markdown]
# ## Class by class
#
# The best arm against the arm without a teacher: where the teachers helped, and where not.

# %%
plots.per_class(*class_aps(run))

# %% [markdown]
# ## Kinds of errors
#
# Of each student as many detections as there are objects, the best scored: a score that all had to reach would favour the one that
# is surer of itself. Each is of one kind. *Correct*: of an object's class, and overlapping it by half (IoU 0.5);
# *duplicate*: of one that a better scored detection has. *Localisation*: of the class, badly placed (IoU 0.1 to 0.5);
# *classification*: well placed, of another class; *both*; *background*: on no object. *Missed* are objects that none of
# these concern. (After TIDE, Bolya et al., ECCV 2020.)

# %%
kinds = errors_by_detector(plan, run)
plots.error_types({label: errors.counts for label, errors in kinds.items()}, count_objects(plan))

# %% [markdown]
# Objects that only one of two students finds, counted the same way:

# %%
markdown_table(objects_found_and_lost(kinds))

# %% [markdown]
# ## Detections side by side
#
# One image, and what each student and the strongest teacher find in it. A single image shows little: the table above counts them
# all.

# %% [markdown] tags=["live"]
# Choose an image and the least score below the figure.

# %%
numbers = checkpoint_metrics(plan, checkpoint, metrics, work_dir)
detections = DetectionsView(plan, run, checkpoint_detections(numbers))
thresholds = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
image = min(image, len(detections) - 1)
show_with_controls(detections, image=(image, range(len(detections))), threshold=(0.5, thresholds))

# %% [markdown]
# ## Beside the paper

# %% [markdown] tags=["live"]
# A released student comes first, if the parameter `checkpoint` names one: any of this recipe's architecture is tested on the
# recipe's validation split, and needs no run.

# %%
headings = {'name': '', 'ours': 'this checkpoint', 'paper': 'the release'}
headings |= {'baseline': 'alone, 12 epochs', 'baseline_2x': 'alone, 24 epochs'}
headings |= {'difference': 'difference from the release'}
markdown_table(paper_rows(numbers, plan), headings)

# %%
show_sentences(paper_verdict(numbers, plan))

# %% [markdown]
# The authors' released students, and the same student alone. Two stages take 24 epochs, so the gain against 24 epochs alone is
# the teachers' part.

# %%
headings = {'name': 'COCO', 'result': 'the release'}
headings |= {'baseline': 'alone, 12 epochs', 'gain': 'gain over 12'}
headings |= {'baseline_2x': 'alone, 24 epochs', 'gain_2x': 'gain over 24'}
markdown_table(paper_gains(run.paper), headings)

# %% [markdown]
# Direct and progressive are compared within the pair of the paper's bar chart. The release is another training: RetinaNet's with
# ResNet and ResNeXt had stronger teachers than the pair. The walk-through is a third one, in notebook 06.

# %%
show_sentences(*paper_finding(run.paper).values())

# %% [markdown]
# On another dataset, or with detectors of another size, the absolute numbers can't be compared; the direction
# of the gains can. The dashed line is what a student gains without a teacher.

# %%
plots.paper_next_to_ours(run.paper, run.key_aps(), dataset_name(plan))

# %% [markdown]
# ## Direct against progressive, by method
#
# The paper's bar chart, and the same of runs with other methods. Make one with
# `mtpd run RECIPE --cfg-options distill.method=fgd --work-dir runs/NAME-fgd/0`, NAME being the recipe's: it is found there.

# %%
student = run.paper.get('student')
chart, ours = paper_chart(student), compare_methods(plan, run, compare)
plots.direct_against_progressive(chart, ours.bars, dataset_name(plan), chart_notes(student))

# %%
show_sentences(methods_caption(ours, chart, student, dataset_name(plan)))

# %% [markdown]
# Direct distillation is a strong rival. Whether a sequence can beat it depends on how far the student is trained: notebook 06, "When
# does a sequence help?", has what is known.

# %%
show_sentences('**Conclusion.**', run_summary(run))

# %% [markdown]
# **Try this**
#
# - In JupyterLab, lower the score threshold below the figure: which detector finds the small digits first, and at the price of which mistakes?
# - Set `checkpoint` to a student of your own, from `mtpd export`.
#
# Next: 06, what changed inside.
