# %% [markdown]
# # 02 · Student and teachers
#
# **Question.** How good and how costly are the detectors before any distillation?
#
# The *student* is small and trained here: its *baseline* is where every arm starts. The *teachers* are
# larger. Where the recipe names a checkpoint it is loaded, else the teacher is trained. Distillation has
# something to give only if the teachers are clearly better than the student will become.
#
# **What to expect.** A table and a figure: teachers far above the student, and dearer to run. Without a run (`make demo`)
# the detectors are measured here first, a minute or two.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed

# %%
from mtpd import load_recipe, plots
from mtpd.analysis import loss_rows, prepare_detector
from mtpd.report import detector_rows, markdown_table, show_sentences

plan = load_recipe(recipe, cfg_options, seed)

# %%
detectors = detector_rows(plan, work_dir)

# %% [markdown]
# ## Accuracy, size and speed
#
# A box is right where its overlap with an object's, $\mathrm{IoU} = |A \cap B| / |A \cup B|$, reaches a threshold. *AP*, average
# precision, is the area under the curve of precision over recall, a mean over classes and the thresholds 0.50 to 0.95, in points of
# 100; AP50 that of 0.50 alone. GFLOPs count a multiply-add as one. Milliseconds are this machine's, one image at a time, without
# post-processing; they follow GFLOPs only loosely, since what a layer takes depends on how well it suits the processor. On the
# *Pareto front* are detectors than which none is cheaper and better.
#
# Columns on training are there where it is known. Mind them: the shipped teachers were trained for longer, and on more scenes, than
# a student. The updates of one that *began from* another come on top of those.

# %%
markdown_table(detectors, 'detectors')

# %%
plots.ap_versus_cost(detectors)

# %% [markdown]
# ## How the baseline was trained

# %%
baseline = prepare_detector(plan, 'student', work_dir)
plots.loss_curves(loss_rows(baseline['dir'] / 'log.json'))

# %%
student = detectors[0]
best = max(detectors, key=lambda row: row['AP'] or 0)
show_sentences(
    f'**Conclusion.** The student starts at {student["AP"]:.1f} AP with',
    f'{student["parameters"] / 1e6:.2f} million parameters. The best detector, {best["label"]}, has',
    f'{best["AP"]:.1f} AP with {best["parameters"] / student["parameters"]:.1f} times as many:',
    f'{best["AP"] - student["AP"]:.1f} AP lie between them.',
)

# %% [markdown]
# **Try this**
#
# - Where would the student lie if distillation closed half of the gap? Notebook 05 tells how far it gets.
# - `mtpd export CHECKPOINT student.onnx` makes an ONNX file of it: `benchmarks/README.md` has its latency beside the teachers'.
#
# Next: 03, the order of the teachers.
