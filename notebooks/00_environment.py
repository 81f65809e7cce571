# %% [markdown]
# # 00 · Environment
#
# **Question.** Can this machine run the recipe, and with what versions and devices?
#
# Seven notebooks follow one run of a *recipe*, a file that says what to run. A small detector, the *student*, learns from
# a *sequence* of larger detectors, its *teachers*, stage by stage (MTPD: Cao et al., ICML 2023). `make demo` makes the run of the
# default recipe in minutes. Each notebook finds the run and does not repeat what is done.
#
# | notebooks | subject |
# |---|---|
# | 00, 01 | the machine, and the data |
# | 02 | the student and its teachers before any distillation |
# | 03 | which teacher first? |
# | 04 | one stage of distillation |
# | 05, 06 | which arm wins, and what changed inside |
#
# **What to expect.** A list of checks, and a fix for each that fails. Then the versions, which are stored with the results: without
# them nobody can repeat a number.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed

# %%
from mtpd import load_recipe
from mtpd.analysis import run_checks, speed_settings, write_environment
from mtpd.report import markdown_table, show_sentences

plan = load_recipe(recipe, cfg_options, seed)
run_dir = plan.run_dir(work_dir)
checks = run_checks(recipe, plan.overrides, run_dir)
fixes = {'fix': 'fix'} if any(c.fix for c in checks) else {}
markdown_table(
    [c._asdict() for c in checks], {'name': 'check', 'state': 'state', 'found': 'found', **fixes}
)

# %% [markdown]
# ## Versions and device

# %%
versions = write_environment(
    run_dir / 'environment.json', plan.cfg.runtime.threads, **speed_settings(plan)
)
markdown_table([{'what': key, 'value': str(value)} for key, value in versions.items()])

# %% [markdown]
# ## What will run
#
# An *arm* is a sequence of stages, each with a teacher or none. Every arm has the same student and the same number of *updates*
# (optimizer steps), split evenly over its stages.

# %%
markdown_table(
    [
        {'arm': a.label, 'stages': len(a.teachers), 'updates of the student': a.updates}
        for a in plan.arms.values()
    ]
)

# %%
bad = [c for c in checks if c.state == 'fail']
show_sentences(
    f'**Conclusion.** {len(checks)} checks, {len(bad)} of them failed.',
    'The recipe can run here.' if not bad else 'Fix these first: ' + '; '.join(c.fix for c in bad),
)

# %% [markdown]
# **Try this**
#
# - Set `recipe` to another one that `mtpd recipes` lists, for example one for COCO. What would its run need?
# - Set `cfg_options` to `'speed.precision=fp16'`. The mistake is reported before anything is trained.
#
# Next: 01, the data.
