"""A SLURM of one node on this machine, without accounting, as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ('slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol')

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=requeue_delay=1,batch_sched_delay=0,sched_interval=5,bf_interval=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
KillWait=5
InactiveLimit=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here, or None."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f'no {", ".join(absent)} (Debian: slurmctld slurmd slurm-client)'
    return None if os.geteuid() == 0 else 'slurmd has to be started by root'


@contextlib.contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts a controller and a node; yields the environment in which SLURM's commands find them."""
    folder.mkdir(parents=True)
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    conf = folder / 'slurm.conf'
    host = socket.gethostname().split('.')[0]
    conf.write_text(CONF.format(host=host, ports=_ports(2), user='root', folder=folder, cpus=cpus))
    (folder / 'cgroup.conf').write_text('CgroupAutomount=no\n')
    env = os.environ | {'SLURM_CONF': str(conf)}
    daemons = []
    try:
        for command in (['slurmctld', '-D', '-i'], ['slurmd', '-D', '-N', host]):
            out = (folder / f'{command[0]}.out').open('w')
            daemons.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
        _wait_idle(env, folder)
        yield env
    finally:
        subprocess.run(['scancel', '--me'], env=env, capture_output=True, timeout=30)
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _wait_idle(env: dict[str, str], folder: Path, seconds: float = 60) -> None:
    until = time.time() + seconds
    while time.time() < until:
        process = subprocess.run(
            ['sinfo', '--noheader', '--format=%T'], env=env, capture_output=True, text=True
        )
        if process.stdout.strip() == 'idle':
            return
        time.sleep(0.5)
    logs = ''.join(path.read_text()[-2000:] for path in sorted(folder.glob('*.log')))
    raise RuntimeError(f'SLURM did not come up: {process.stdout}{process.stderr}\n{logs}')


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(('127.0.0.1', 0))
        return [item.getsockname()[1] for item in sockets]
