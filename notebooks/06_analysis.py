# %% [markdown]
# # 06 · What distillation changed
#
# **Question.** How do features, losses and AP change from stage to stage, and why does distillation help?
#
# **What to expect.** Features of student and teachers for a few images, and the distance between them. The distillation loss by
# level. AP along the stages and over seeds. Then whether the gain is a better fit to the training images, or better generalisation.
# This notebook needs a run. Where there is none, the next cell names the command that makes it. Fit and flatness take longest: they
# are measured once and stored.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
arm: str = ''  # the arm whose stages are looked at; empty, the progressive one, else the last
level: int = 0  # FPN level, 0 is the finest
images: int = 3  # validation images to show
compare: list[str] = []  # run folders of other seeds; empty, those beside this one

# %%
from mtpd import load_recipe, load_run, plots
from mtpd.analysis import (
    distance_to_teachers,
    feature_differences,
    feature_images,
    feature_rows,
    feature_strengths,
    gap_difference_rows,
    gap_rows,
    gap_verdict,
    load_study,
    measure_seeds,
    pca_colours,
    stage_checkpoints,
    study_summary,
    study_verdict,
)
from mtpd.report import (
    FeaturesView,
    markdown_table,
    show_sentences,
    show_with_controls,
    study_rows,
)

plan = load_recipe(recipe, cfg_options, seed)
run = load_run(plan.run_dir(work_dir))
chosen = run.arm(arm)

# %% [markdown]
# ## Feature maps
#
# The strength of the neck's features (mean absolute activation over channels) for the same images. The columns are the student
# before distillation, after each stage, and after as many updates without a teacher, then the teachers. All panels share one scale.

# %%
states = stage_checkpoints(plan, chosen['name'], work_dir)
pictures = feature_images(plan, images)
rows = feature_rows(plan, states, images, level)
show_sentences(f'Stages of the arm **{chosen["label"]}**, FPN level {level} (0 is the finest).')

# %%
plots.feature_maps(feature_strengths(rows), pictures)

# %% [markdown]
# The difference from the student before distillation: red is stronger, blue is weaker. Detectors differ in scale. MGD compares the
# output of its generation layers with the teacher, so the student's strengths need not become the teacher's.

# %%
plots.feature_differences(feature_differences(rows), pictures, rows[0][0][0])

# %% [markdown]
# The same features as colours. The first three principal components (PCA) of the last teacher's features are red, green and blue.
# The features of each other detector are mapped onto them by the best linear map (a 1 x 1 convolution, fitted on these images). A
# panel that looks like the teacher's belongs to a detector whose features have the same content.

# %%
teacher = rows[0][-1][0]
plots.feature_colours(pca_colours(rows, teacher), pictures, teacher)

# %% [markdown]
# In numbers: the adaptation cost from the student to each teacher (notebook 03), over all levels. The map is fitted on 64 validation
# images, and the cost is measured on 64 others, with a 95 % interval over these. Training without a teacher may also bring the
# student nearer. That part is not due to distillation.

# %%
markdown_table(distance_to_teachers(plan, states))

# %% [markdown] tags=["live"]
# Choose an arm, an image, an FPN level (0 is the finest) and a view with the controls below the figure.

# %% tags=["live"]
done = [a for a in run.arms if run.metrics('arm', a['name'])]
arms = {a['label']: stage_checkpoints(plan, a['name'], work_dir) for a in done}
features = FeaturesView(plan, arms, 12)
show_with_controls(
    features,
    arm=(chosen['label'], list(arms)),
    image=(0, range(len(features))),
    level=(level, features.levels),
    view=('strength', features.VIEWS),
)

# %% [markdown]
# ## Losses, stages in sequence
#
# The upper panel shows the detection loss, the lower one the distillation loss. At the start of a stage the distillation loss has
# untrained generation layers and another teacher. The detection loss rises, because the learning rate schedule starts anew.

# %%
plots.loss_curves(run.curves())

# %% [markdown]
# The share of each FPN level in the distillation loss of that arm. A line marks a new teacher. MGD's loss is a sum over cells, so
# level 0, the finest, has most of it.

# %%
plots.level_shares(run.curves(chosen['name']))

# %% [markdown]
# ## AP along the stages
#
# AP over the student's updates, stage by stage. Lines join the measured values. The first figure has every arm of this run. The
# second has one arm over all seeds, with its teachers' names.

# %%
plots.ap_over_stages(run.stage_aps())

# %%
study = load_study(run, compare)
without = study.control.ap if study.control else None
plots.walk_through(study.order(chosen['name']).curves, without)

# %% [markdown]
# Where the paper walks through its stages, the figure below shows them beside the progressive arm of this run.

# %%
plots.paper_walk_through(run.paper, run.key_aps(), run.info.get('dataset') or 'this run')

# %% [markdown]
# ## AP versus teacher order
#
# Runs that differ only in the seed are read together. A small marker is a seed. A large marker is the mean with its 95 % interval
# (Student's t). Differences are paired by seed, on the same data. They are against training without a teacher, and
# against the strongest teacher alone. A star marks an interval without 0: the difference is shown. All seeds share the validation
# images, so the intervals are about training and not about other images.

# %%
plots.ap_versus_order(study.table(), study.start)

# %%
markdown_table(study_rows(study))

# %% [markdown]
# ### When does a sequence help?
#
# - In classification, larger models were often no better teachers, and a sequence of distillation steps did not help. Stopping the
#   teacher early helped ([Cho & Hariharan, ICCV 2019](https://arxiv.org/abs/1910.01348)).
# - An assistant between teacher and student, itself distilled from the teacher, helped students that were trained long, from
#   scratch ([TAKD, AAAI 2020](https://arxiv.org/abs/1902.03393)).
# - Errors add up along a chain, so earlier teachers should stay, at random
#   ([DGKD, ICCV 2021](https://arxiv.org/abs/2009.08825)).
# - Earlier checkpoints of one teacher are a sequence, too, also for losses on features
#   ([RCO, ICCV 2019](https://arxiv.org/abs/1904.09149)).
# - A patient and consistent teacher needs very long schedules ([CVPR 2022](https://arxiv.org/abs/2106.05237)).
# - HEAD (ECCV 2022) has small students, trained for 12 epochs: RetinaNet R18 from 31.7 to 36.1 AP, MobileNetV2 from 27.8 to 33.1.
#
# So the answer depends on the regime. The *regime index* is the gain of training as long without a teacher, divided by what the best
# teacher alone brings on top of it. Above 1, splitting the training can cost more than any order wins, so such a run does not
# contradict the paper. The conclusion below has the index of this run. The paper's RetinaNet has 0.2.

# %% [markdown]
# ## Predicted and measured
#
# The adaptation costs were measured before any student was distilled. If they predict good sequences, cheap paths have high AP. The
# cost of a path is the sum of its squared adaptation costs, from the student through its teachers.

# %%
plots.predicted_and_measured(study.table(), study.correlation())

# %% [markdown]
# ## Why it helps: fit, generalisation, flatness
#
# A teacher may help a student to fit its training images, or to generalise to other images. The figures below show the detection
# loss and the AP on the first 200 images of each split. The *generalisation gap* is the distance between the two splits. The paper
# discusses it, too. It can be small because the fit is poor, so what counts is the value on validation images. A loss that is lower
# on validation images only says that these images are easier.

# %%
by_seed = measure_seeds(plan, run, compare)
plots.generalisation(by_seed)

# %% [markdown]
# *Flat minima* are said to generalise better. Weights are moved at random, every filter $w$ by $\rho\,\lVert w\rVert$, and the loss
# on training images rises. The less it rises, the flatter the minimum. All students are moved in the same directions.

# %%
plots.flatness(by_seed)

# %%
markdown_table(gap_rows(by_seed))

# %% [markdown]
# The difference from training without a teacher, paired by seed, with a 95 % interval where there are several seeds. A star marks
# an interval without 0. For all measures, less is better.

# %%
control = study.control and study.control.name
markdown_table(gap_difference_rows(by_seed, control))

# %%
show_sentences(*gap_verdict(by_seed, control))

# %%
walk = ' → '.join(f'{ap:.1f}' for ap in study.order(chosen['name']).walk)
show_sentences(
    f'**Conclusion.** Along "{chosen["label"]}" the AP goes {walk}.', study_summary(study)
)

# %%
markdown_table(
    [{'question': question, 'answer': answer} for question, answer in study_verdict(study).items()]
)

# %% [markdown]
# **Try this**
#
# - In JupyterLab, compare levels 0 and 2 with the controls below the figure. Where do student and teacher agree?
# - Run `mtpd run RECIPE --seed 1`, then this notebook again: intervals appear.
# - `mtpd compare RUN RUN` puts runs with other settings side by side.
