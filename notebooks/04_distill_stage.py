# %% [markdown]
# # 04 · One stage of distillation
#
# **Question.** What does a student gain from one teacher?
#
# The student's features are compared with the teacher's, FPN level by level, and the loss is added to the
# detection loss. By default it is *masked generative distillation* (MGD): random cells of the student's
# feature map are blanked, and a small network on top of it has to generate the teacher's whole map from the
# rest. The teacher never changes. The next stage starts from this stage's student; what a loss trains beside
# the student is thrown away.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
arm: str = 'progressive'  # which arm of the recipe
stage: int = 1  # which stage of it, from 1

# %%
from mtpd import load_recipe, plots, train_stage
from mtpd.runs import loss_rows
from mtpd.tables import say, table
from mtpd.train import prepare_detector

plan = load_recipe(recipe, cfg_options, seed)
sequence = plan.arm(arm, stage)
teacher = sequence.teachers[stage - 1]
teacher_label = plan.detectors[teacher].get('label', teacher) if teacher else 'no teacher'
say(
    f'Arm "{sequence.label}", stage {stage} of {len(sequence.teachers)}: {teacher_label},',
    f'{sequence.stage_updates} updates of the student.',
)

# %%
made = train_stage(plan, stage, arm, work_dir)

# %% [markdown]
# ## Loss

# %%
plots.loss_curves(loss_rows(made['dir'] / 'log.json', teacher_label))

# %% [markdown]
# ## Accuracy

# %%
baseline = prepare_detector(plan, 'student', work_dir)['metrics']
steps = {'baseline': baseline, f'after stage {stage}': made['metrics']}
keys = {'AP': 'bbox_mAP', 'AP50': 'bbox_mAP_50', 'AP75': 'bbox_mAP_75', 'AP small': 'bbox_mAP_s'}
keys |= {'mask AP': 'segm_mAP'} if 'segm' in plan.cfg.evaluation.metrics else {}
rows = [
    {'student': name, **{key: 100 * (found[source] or 0) for key, source in keys.items()}}
    for name, found in steps.items()
]
table(rows)

# %%
gain = rows[-1]['AP'] - rows[0]['AP']
say(
    f'**Conclusion.** After stage {stage} the student has {rows[-1]["AP"]:.1f} AP,',
    f'{plots.signed(gain)} against the baseline, after {stage * sequence.stage_updates} more updates.',
    "How much of it is the teacher's doing, the arm without a teacher tells (notebook 05).",
)
