"""Where a sweep's jobs run and what they get there; both executors are built on submitit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

from ..errors import MtpdError, unknown

EXECUTORS = ('local', 'slurm')
YEAR = 365 * 24 * 60  # minutes


@dataclass(frozen=True)
class Resources:
    """What a job gets. `slots`: jobs side by side; `slurm` holds submitit's own parameters, such as partition."""

    executor: str = 'local'
    slots: int | None = None
    minutes: int | None = None
    signal_delay: int | None = None
    requeues: int = 3
    threads: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises MtpdError where the executor is unknown or cannot be used here."""
        if self.executor not in EXECUTORS:
            raise MtpdError(f'--executor: {unknown("executor", self.executor, EXECUTORS)}')
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise MtpdError(
                'sweeps need submitit, which is not installed: '
                '`make env`, or pip install -r requirements/sweep.txt, or pip install "mtpd[sweep]".'
            ) from None
        if self.executor == 'slurm':
            for program in ('sbatch', 'srun'):
                if not shutil.which(program):
                    raise MtpdError(
                        f'--executor slurm: there is no {program} on this machine. Log in to a node that submits jobs, '
                        'or use --executor local.'
                    )
            if not self.minutes:
                raise MtpdError("--executor slurm: give a job's time limit in minutes with --time.")

    @property
    def delay(self) -> int:
        """Seconds before the time limit at which a job is told to stop."""
        return self.signal_delay or min(90, 15 * (self.minutes or YEAR))
