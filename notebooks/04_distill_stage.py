# %% [markdown]
# # 04 · One stage of distillation
#
# **Question.** What does a student gain in one stage, with one teacher or, in the arm without a teacher, from more training?
#
# With a teacher, the student's features are compared with the teacher's, FPN level by level. The result, the *distillation loss*,
# is added to the detection loss. The default is *masked generative distillation* (MGD; Yang et al., ECCV 2022). It blanks random
# cells of the student's feature map. A small network, the *generation layer*, then has to generate the teacher's whole map from the
# rest. For a level with features $F^S$ of the student and $F^T$ of the teacher:
#
# $$L = \alpha \sum \left( F^T - G(M \odot A(F^S)) \right)^2$$
#
# $A$ matches the channels (a 1 x 1 convolution). $M$ is a random mask that blanks a share of the cells. $G$ is the generation layer
# (two 3 x 3 convolutions). The recipe sets $\alpha$ and the share.
#
# The teacher never changes. The next stage starts from this stage's student. The weights of the distillation loss are thrown away,
# unless the recipe sets `distill.keep_adapters`.
#
# **What to expect.** Loss curves that grow during training, or the whole curves where the stage is done. Then AP before and after.
# A stage of the demo takes one to four minutes on two cores.

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
# The upper panel shows the detection loss, the lower one the distillation loss, if there is a teacher. The detection loss rises at
# first, because each stage starts its learning rate schedule anew, with a warm-up. A stage that is done is not trained again.

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
    'The arm without a teacher shows how much of this the teacher brings (notebook 05).'
    if teacher
    else 'This arm is the control: its gain comes from more training alone.',
)

# %% [markdown]
# **Try this**
#
# - Set `arm` to `'none'`: the same number of updates, without a teacher. How much of the gain is left?
# - Set `cfg_options` to `'distill.method=cwd'` and `work_dir` to a new folder: another distillation loss, the same student.
#
# Next: 05, which arm wins.
