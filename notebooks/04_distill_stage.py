# %% [markdown]
# # 04 · One stage of distillation
#
# **Question.** What does a student gain in one stage: from one teacher or, in the arm without, from training on?
#
# With a teacher, the student's features are compared with the teacher's, FPN level by level, and the loss is added to the
# detection loss. By default it is *masked generative distillation* (MGD): random cells of the student's
# feature map are blanked, and a small network on top of it has to generate the teacher's whole map from the
# rest. The teacher never changes. The next stage starts from this stage's student; what a loss trains beside
# the student is thrown away. For a level with features $F^S$ of the student and $F^T$ of the teacher:
#
# $$L = \alpha \sum \left( F^T - G(M \odot A(F^S)) \right)^2$$
#
# $A$ matches the channels (1 x 1 convolution), $M$ is a random mask that blanks a share of the cells, $G$ generates (two 3 x 3
# convolutions); $\alpha$ and the share are the recipe's. (Yang et al., Masked Generative Distillation, ECCV 2022.)
#
# **What to expect.** Losses that fall while you watch, unless the stage is done: then its curves, at once. After it, AP before and
# after. A stage of the demo takes one to four minutes on two cores.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
arm: str = 'progressive'  # which arm of the recipe
stage: int = 1  # which stage of it, from 1

# %%
from mtpd import load_recipe, plots
from mtpd.analysis import stage_sentences
from mtpd.report import markdown_table, show_sentences, stage_rows, train_stage_live

plan = load_recipe(recipe, cfg_options, seed)
sequence = plan.arm(arm, stage)
teacher = sequence.teachers[stage - 1]
teacher_label = plan.detectors[teacher].get('label', teacher) if teacher else 'no teacher'
show_sentences(
    f'**Arm "{sequence.label}", stage {stage} of {len(sequence.teachers)}:** {teacher_label},',
    f'{sequence.stage_updates} updates of the student.',
)

# %% [markdown]
# ## Training
#
# Above the loss of the detector, below that of the distillation, if there is a teacher. The detection loss rises at first: a stage
# begins its learning rate schedule anew, with a warm-up. A stage that is done is not trained again.

# %%
made = train_stage_live(plan, stage, arm, work_dir)

# %% [markdown]
# ## Accuracy

# %%
steps = stage_rows(plan, arm, stage, work_dir)
markdown_table(steps, 'stages')

# %%
for sentence in stage_sentences(plan, arm, stage, work_dir):
    show_sentences(sentence)
show_sentences(
    f'**Conclusion.** After stage {stage} the student has {steps[-1]["AP"]:.1f} AP,',
    f'{plots.gain(steps[-1]["AP"], steps[-2]["AP"])} by this stage and',
    f'{plots.gain(steps[-1]["AP"], steps[0]["AP"])} against the baseline, after {stage * sequence.stage_updates} more updates.',
    "How much of it is the teacher's doing, the arm without a teacher tells (notebook 05)."
    if teacher
    else 'This is the control: what it gains, no teacher has given it.',
)

# %% [markdown]
# **Try this**
#
# - Set `arm` to `'none'`: as many updates, and no teacher. What of the gain is left?
# - Set `cfg_options` to `'distill.method=cwd'` and `work_dir` to a new folder: another loss, the same student.
#
# Next: 05, which arm wins.
