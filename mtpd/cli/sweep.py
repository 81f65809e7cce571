"""`mtpd sweep`, `mtpd status` and `mtpd collect`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from .options import PATH, as_json_option, echo_json

DEADLINE = click.option(
    '--deadline',
    default=120,
    show_default=True,
    help='Seconds without a sign of life after which a job counts as lost.',
)


@click.option(
    '--orders',
    default='all',
    show_default=True,
    help='all: each teacher, every ordered pair and each teacher twice; auto: the sequence that adaptation costs suggest, '
    'and its last teacher in as many stages; or "a,b;b,a;b,b".',
)
@click.option('--methods', help="Distillation losses: mgd,cwd. Default: the recipe's.")
@click.option('--seeds', default='0', show_default=True, help='Seeds: 0-4 or 0,2.')
@click.option('--executor', default='local', show_default=True, help='local or slurm.')
@click.option(
    '--slots',
    type=click.IntRange(1),
    help='Jobs side by side. Default: one per GPU; with slurm, as many as it starts.',
)
@click.option('--cpus', type=click.IntRange(1), help='CPU cores of a job.')
@click.option(
    '--time',
    'minutes',
    type=click.IntRange(1),
    help='Time limit of a job in minutes; slurm needs one.',
)
@click.option(
    '--requeues',
    default=3,
    show_default=True,
    help='How often a job that runs out of time is requeued.',
)
@click.option(
    '--signal-delay',
    type=int,
    help='Seconds before the time limit at which a job stops. Default: 15 to 90.',
)
@click.option('--partition', help="SLURM's partition.")
@click.option('--gpus-per-job', type=int, help='GPUs of a SLURM job.')
@click.option('--mem', type=float, help='GB of memory of a SLURM job.')
@click.option('--account', help='Whom SLURM charges.')
@click.option('--qos', help="SLURM's quality of service.")
@click.option('--constraint', help='What a SLURM node has to have.')
@DEADLINE
def sweep(
    recipe, work_dir, orders, methods, seeds, executor, slots, cpus, minutes, requeues, signal_delay,
    partition, gpus_per_job, mem, account, qos, constraint, deadline,
) -> None:  # fmt: skip
    """Distil RECIPE's student in many orders of teachers. Methods and seeds may be several, too.

    Jobs that are done are skipped. The same command runs failed jobs again.
    """
    from ..sweep.executors import Resources
    from ..sweep.results import is_ended, job_table, table_text
    from ..sweep.run import run_sweep

    slurm = {
        'partition': partition,
        'gpus_per_node': gpus_per_job,
        'cpus_per_task': cpus,
        'mem': mem and f'{round(mem * 1024)}M',
        'account': account,
        'qos': qos,
        'constraint': constraint,
    }
    if cpus:  # from 22.05 on, srun does not take it over from sbatch
        slurm['srun_args'] = [f'--cpus-per-task={cpus}']
    slurm = {key: value for key, value in slurm.items() if value is not None}
    resources = Resources(executor, slots, minutes, signal_delay, requeues, cpus, slurm)
    made = run_sweep(recipe, orders, methods, seeds, work_dir, resources, click.echo, deadline)
    rows = job_table(made, deadline)
    click.echo(table_text(rows))
    if not is_ended(rows):
        click.echo(f'follow them: mtpd status {made.path} --watch')
    elif any(row['state'] != 'done' for row in rows):
        click.echo('not complete: the same command runs the missing jobs')
        sys.exit(1)
    else:
        click.echo(f'complete: mtpd collect {made.path}')


@click.command()
@click.argument('folder', metavar='RUN_OR_SWEEP', type=PATH)
@click.option('--watch', is_flag=True, help='For sweeps: repeat until all jobs have ended.')
@click.option('--every', default=10.0, show_default=True, help='Seconds between repeats.')
@DEADLINE
@as_json_option
def status(folder: Path, watch: bool, every: float, deadline: float, as_json: bool) -> None:
    """Say where a run stands, or the jobs of a sweep. Each has its state, stage, updates, times, and why it failed."""
    if not (folder / 'sweep.json').is_file():
        from ..pipeline.status import read_status, status_text

        facts = read_status(folder)
        if as_json:
            echo_json(facts)
        else:
            click.echo(status_text(facts))
        return
    from ..sweep.folder import load_sweep
    from ..sweep.results import is_ended, job_table, table_text

    while True:
        rows = job_table(load_sweep(folder), deadline)
        if as_json:
            echo_json(rows)
            return
        if watch:
            click.clear()
        click.echo(table_text(rows))
        if not watch or is_ended(rows):
            return
        time.sleep(every)


@click.command()
@click.argument('folder', metavar='SWEEP', type=PATH)
def collect(folder: Path) -> None:
    """Gather what a sweep has measured. It is written to results.json and results.csv in SWEEP."""
    from ..sweep.results import collect_results

    results = collect_results(folder)
    click.echo(f'{len(results["rows"])} rows: {folder / "results.csv"}, {folder / "results.json"}')
    for item in results['unfinished']:
        reason = f' ({item["reason"].splitlines()[0]})' if item['reason'] else ''
        click.echo(f'{item["job"]}: {item["state"]}{reason}')
