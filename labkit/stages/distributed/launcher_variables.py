"""Launchers' environment variables: what torchrun, mpirun, srun, accelerate and DeepSpeed set for the processes they start.

Trainers read there that they are one of several processes, and of which number type. A stage that works in the notebook's own
process is neither: under torchrun's variables it would wait for ever for processes that nobody started, under MPI's it would end
in another program's error, and `ACCELERATE_MIXED_PRECISION` would overrule params.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

WORKER_FOLDER_VARIABLE = "LABKIT_WORKERS"
"""Set for labkit's own worker processes alone, to the folder of their files: their RANK and WORLD_SIZE are meant."""
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "torchrun": (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "ROLE_NAME",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_*",
    ),
    "MPI": ("OMPI_*", "PMI_*", "PMIX_*", "MV2_*", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NPROCS"),
    "accelerate": ("ACCELERATE_*", "FSDP_*", "MEGATRON_LM_*", "PARALLELISM_CONFIG_*", "FORK_LAUNCHED"),
    "DeepSpeed": ("DEEPSPEED_*",),
    "SageMaker": ("SMDATAPARALLEL_*",),
    "XLA": ("XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
}
"""Variables that torch, accelerate, transformers or TRL read, by who sets them; a star stands for any ending."""


def launcher_variables(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The variables of an environment that belong to a launcher, by the launcher's name.

    >>> launcher_variables({"RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "RANKING": "1", "HOME": "/"})
    {'torchrun': ['RANK'], 'MPI': ['OMPI_COMM_WORLD_SIZE']}
    """
    found = {
        launcher: sorted(name for name in environment if any(fnmatchcase(name, pattern) for pattern in patterns))
        for launcher, patterns in LAUNCHERS.items()
    }
    return {launcher: names for launcher, names in found.items() if names}


def without_launchers(environment: Mapping[str, str], *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment without launchers' variables, those of the launchers named in `but` kept.

    >>> without_launchers({"RANK": "0", "SLURM_PROCID": "0", "HOME": "/"}, but=("srun",))
    {'SLURM_PROCID': '0', 'HOME': '/'}
    """
    found = launcher_variables(environment)
    gone = {name for launcher, names in found.items() if launcher not in but for name in names}
    return {name: value for name, value in environment.items() if name not in gone}


@contextmanager
def single_process() -> Iterator[None]:
    """Hide launchers' variables within the block or the decorated function, so that libraries see a single process.

    accelerate keeps what it once read for the whole process, so it is made to read anew. In a worker the numbers of its rank stay,
    and what a task has set for accelerate is not meant for the next one.
    """

    def found() -> list[str]:
        there = launcher_variables(os.environ)
        meant = ("torchrun", "srun") if WORKER_FOLDER_VARIABLE in os.environ else ()
        return [name for launcher, names in there.items() if launcher not in meant for name in names]

    before = {name: os.environ.pop(name) for name in found()}
    states = _accelerate_states()
    kept = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        # Training sets some of them itself, for its own libraries.
        for name in found():
            del os.environ[name]
        os.environ.update(before)
        for state, values in zip(states, kept, strict=True):
            if values:  # else what the block has left is right for this process: it is alone
                state.clear()
                state.update(values)


def _accelerate_states() -> list[dict[str, object]]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return [each._shared_state for each in (PartialState, AcceleratorState, GradientState)]
