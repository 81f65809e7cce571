# %% [markdown]
# # 05 · Results
#
# **Question.** Which arm makes the best student, and by how much?
#
# All arms continue the same baseline for the same number of updates on the same data. "No teacher" just
# trains on: what it gains is not distillation's doing.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed
image: int = 0  # validation image to show detections on, in file order
threshold: float = 0.3  # least score of a detection that is drawn

# %%
from mtpd import load_recipe, load_run, plots
from mtpd.conclusion import conclusion
from mtpd.data import view
from mtpd.tables import say, table

plan = load_recipe(recipe, cfg_options, seed)
run = load_run(plan.run_dir(work_dir))
rows = run.results()

# %%
headings = {'label': '', 'role': 'role', 'updates': 'updates', 'AP': 'AP', 'AP50': 'AP50'}
headings |= {'AP75': 'AP75', 'AP_s': 'AP small', 'AP_m': 'AP medium', 'AP_l': 'AP large'}
headings |= {'mask_AP': 'mask AP'} if 'segm' in plan.cfg.evaluation.metrics else {}
table(rows, headings)

# %%
plots.ap_by_arm(rows)

# %% [markdown]
# ## Class by class
#
# The best arm against the arm without a teacher: where the teachers helped, and where not.

# %%
arms = {row['name']: row for row in rows if row['role'] == 'arm' and row['AP'] is not None}
best = max(arms.values(), key=lambda row: row['AP'])
control = next((row for row in arms.values() if row['kind'] == 'control'), best)
per_class = {
    row['label']: run.metrics('arm', row['name'])['per_class']['bbox'] for row in (control, best)
}
plots.per_class(
    per_class[control['label']],
    per_class[best['label']],
    (control['label'], best['label']),
)

# %% [markdown]
# ## Detections side by side

# %%
example = view.samples(plan, 'val', 1, skip=image)[0]
files = {
    run.label('student') + ', baseline': run.path / 'detectors' / 'student' / 'detections.json'
}
files |= {row['label']: run.stage_dirs(name)[-1] / 'detections.json' for name, row in arms.items()}
boxes = {
    label: view.detections(path, plan, [example['id']])[example['id']]
    for label, path in files.items()
}
truth = {key: example[key] for key in ('boxes', 'labels')}
plots.detections(example['image'], truth, boxes, plan.classes, threshold)

# %% [markdown]
# ## Beside the paper
#
# Another dataset and detectors of another size: the absolute numbers can't be compared, the direction of
# the gains can.

# %%
plots.paper_next_to_ours(
    run.info['paper'],
    run.walkthrough(),
    'DigitScenes' if plan.cfg.data.root is None else 'own data',
)

# %%
say('**Conclusion.**', conclusion(rows))
