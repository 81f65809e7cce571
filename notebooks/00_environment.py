# %% [markdown]
# # 00 · Environment
#
# **Question.** Can this machine run the recipe, and with what?
#
# Everything that is missing is listed at once, each with its fix. The versions are kept beside the
# results, because a number without them can't be repeated.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed

# %%
from mtpd import doctor, environment, load_recipe, loop
from mtpd.tables import say, table

plan = load_recipe(recipe, cfg_options, seed)
run_dir = plan.run_dir(work_dir)
checks = doctor.check(recipe)
table([{'check': c.name, 'state': c.state, 'found': c.found, 'fix': c.fix} for c in checks])

# %% [markdown]
# ## Versions and device

# %%
versions = environment.write(
    run_dir / 'environment.json', plan.cfg.runtime.threads, precision=loop.precision(plan)
)
table([{'what': key, 'value': str(value)} for key, value in versions.items()])

# %% [markdown]
# ## What will run
#
# An *arm* is a sequence of teachers. Every arm starts from the same student and gets the same number
# of student updates (optimizer steps), split evenly over its stages.

# %%
table(
    [
        {'arm': a.label, 'stages': len(a.teachers), 'updates of the student': a.updates}
        for a in plan.arms.values()
    ]
)

# %%
bad = [c for c in checks if c.state == 'fail']
say(
    f'**Conclusion.** {len(checks)} checks, {len(bad)} of them failed.',
    'The recipe can run here.' if not bad else 'Fix these first: ' + '; '.join(c.fix for c in bad),
)
