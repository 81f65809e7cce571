# %% [markdown]
# # 02 · Student and teachers
#
# **Question.** How good and how costly are the detectors before any distillation?
#
# The *baseline* is the student, trained on its own before any distillation. The *teachers* are larger detectors. A detector is
# loaded where the recipe names its checkpoint, and trained here otherwise. A teacher can help only if it is clearly better than
# the student would become without it.
#
# **What to expect.** A table and a figure: the teachers should be far above the student, and slower. Detectors that the run has
# not measured yet are measured first. In the demo that takes a minute or two.

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
# A detection is correct where the overlap of its box $A$ with an object's box $B$, $\mathrm{IoU} = |A \cap B| / |A \cup B|$, reaches
# a threshold. *AP*, average precision, is the area under the curve of precision over recall. It is a mean over the classes and over
# the thresholds 0.50 to 0.95, in points from 0 to 100. AP50 has the threshold 0.50 alone.
#
# GFLOPs count a multiply-add as one operation. Milliseconds are measured on this machine, one image at a time, without
# post-processing. They follow GFLOPs only loosely, because some layers suit a processor better than others. The *Pareto front* has
# the detectors that no other detector beats in both cost and AP.
#
# The table shows updates and training scenes where they are known. The teachers that come with the kit were trained for longer, and
# on more scenes, than the student. Where a detector *began from* another one, the updates of both add up.

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
    f'**Conclusion.** The baseline has {student["AP"]:.1f} AP with',
    f'{student["parameters"] / 1e6:.2f} million parameters. The best detector, {best["label"]}, has',
    f'{best["AP"]:.1f} AP with {best["parameters"] / student["parameters"]:.1f} times as many parameters.',
    f'The gap is {best["AP"] - student["AP"]:.1f} AP.',
)

# %% [markdown]
# **Try this**
#
# - Where would the student lie if distillation closed half of the gap? Notebook 05 shows how far it gets.
# - `mtpd export CHECKPOINT student.onnx` writes a checkpoint as ONNX. `benchmarks/README.md` compares its latency with the teachers'.
#
# Next: 03, the order of the teachers.
