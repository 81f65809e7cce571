# %% [markdown]
# # 05 · Results
#
# **Question.** Which arm makes the best student, and by how much?
#
# All arms train the same student for the same number of updates on the same data. With `distill.start='baseline'`, as in the demo,
# they continue the same baseline. The arm "no teacher" only trains on, so its gain is not due to distillation.
#
# Each stage has its own learning rate schedule, with warm-up and decay. An arm of two stages goes through it twice in the same
# number of updates.
#
# **What to expect.** The arms side by side: by class, by kind of error and by image. Then the paper's results. This notebook needs a
# run. Where there is none, the next cell names the command that makes it.

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
    f'Numbers and figures of this page are of seed {plan.seed}. Its conclusion is of all seeds',
    'that were run.',
)

# %% [markdown]
# ## Class by class
#
# The best arm against the arm without a teacher: which classes gain from the teachers, and which do not.

# %%
plots.per_class(*class_aps(run))

# %% [markdown]
# ## Kinds of errors
#
# Every student is judged by the same number of detections: those with the highest scores, as many as there are objects. A common
# score threshold would favour a student that gives higher scores. Each detection is of one kind (after TIDE, Bolya et al., ECCV
# 2020):
#
# | kind | the detection |
# |---|---|
# | correct | overlaps an object of its class with IoU 0.5 or more |
# | duplicate | does so, but a detection with a higher score already has the object |
# | localisation | overlaps an object of its class with IoU 0.1 to 0.5 |
# | classification | overlaps an object of another class with IoU 0.5 or more |
# | both | overlaps an object of another class with IoU 0.1 to 0.5 |
# | background | overlaps no object with IoU 0.1 or more |
#
# *Missed* are objects without a correct detection, a localisation error or a classification error.

# %%
kinds = errors_by_detector(plan, run)
plots.error_types({label: errors.counts for label, errors in kinds.items()}, count_objects(plan))

# %% [markdown]
# Objects that only one of two students finds, among the same detections:

# %%
markdown_table(objects_found_and_lost(kinds))

# %% [markdown]
# ## Detections side by side
#
# The detections of each student and of the strongest teacher in one image. One image is an example only: the figure of errors above
# counts all images.

# %% [markdown] tags=["live"]
# Choose the image and the score threshold with the controls below the figure.

# %%
numbers = checkpoint_metrics(plan, checkpoint, metrics, work_dir)
detections = DetectionsView(plan, run, checkpoint_detections(numbers))
thresholds = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
image = min(image, len(detections) - 1)
show_with_controls(detections, image=(image, range(len(detections))), threshold=(0.5, thresholds))

# %% [markdown]
# ## Beside the paper
#
# Tables and figures of this section are there where the recipe has figures of the paper.

# %% [markdown] tags=["live"]
# The parameter `checkpoint` may name a student, such as a released one. It is tested on the recipe's validation split. It must have
# the architecture of the recipe's student. No run is needed for it.

# %%
headings = {'name': '', 'ours': 'this checkpoint', 'paper': 'the release'}
headings |= {'baseline': 'alone, 12 epochs', 'baseline_2x': 'alone, 24 epochs'}
headings |= {'difference': 'difference from the release'}
markdown_table(paper_rows(numbers, plan), headings)

# %%
show_sentences(paper_verdict(numbers, plan))

# %% [markdown]
# The authors' released students, and the same student alone. Two stages take 24 epochs, so the gain over 24 epochs alone is due to
# the teachers.

# %%
headings = {'name': 'COCO', 'result': 'the release'}
headings |= {'baseline': 'alone, 12 epochs', 'gain': 'gain over 12'}
headings |= {'baseline_2x': 'alone, 24 epochs', 'gain_2x': 'gain over 24'}
markdown_table(paper_gains(run.paper), headings)

# %% [markdown]
# Direct and progressive distillation are compared within the pair of the paper's bar chart. The released student comes from another
# training. For RetinaNet with ResNet and ResNeXt teachers, it had stronger teachers than the pair. The paper's walk-through is a
# third training: notebook 06 shows it.

# %%
show_sentences(*paper_finding(run.paper).values())

# %% [markdown]
# On another dataset, or with detectors of another size, absolute AP cannot be compared. Compare the direction of the gains. The
# dashed line is the gain of a student without a teacher.

# %%
plots.paper_next_to_ours(run.paper, run.key_aps(), dataset_name(plan))

# %% [markdown]
# ## Direct against progressive, by method
#
# The paper's bar chart, and the same chart of this recipe's runs with other methods.
# `mtpd run RECIPE --cfg-options distill.method=fgd --work-dir runs/NAME-fgd/0` makes such a run. NAME is the recipe's name, by which
# this notebook finds the run.

# %%
student = run.paper.get('student')
chart, ours = paper_chart(student), compare_methods(plan, run, compare)
plots.direct_against_progressive(chart, ours.bars, dataset_name(plan), chart_notes(student))

# %%
show_sentences(methods_caption(ours, chart, student, dataset_name(plan)))

# %% [markdown]
# Direct distillation is a strong rival. Whether a sequence beats it depends on how far the student is trained: see notebook 06,
# "When does a sequence help?".

# %%
show_sentences('**Conclusion.**', run_summary(run))

# %% [markdown]
# **Try this**
#
# - In JupyterLab, lower the score threshold below the figure. Which detector finds the small objects first, and with how many
#   mistakes?
# - Set `checkpoint` to a student of your own, from `mtpd export`.
#
# Next: 06, what changed inside.
