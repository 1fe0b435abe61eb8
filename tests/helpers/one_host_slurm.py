"""A SLURM on this machine alone, for root, without systemd, munge or a database of jobs; it ends with its context."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
InactiveLimit=0
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no SLURM can be started here; empty if one can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"no {absent[0]} on this machine (apt-get install slurm-wlm)"
    return "" if os.getuid() == 0 else "only root can start SLURM so"


@contextlib.contextmanager
def one_host_slurm(folder: Path) -> Iterator[Path]:
    """Starts the daemons; yields the file that `SLURM_CONF` has to name, as it does in this process meanwhile."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, ports=_free_ports(2)))
    (folder / "cgroup.conf").touch()
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.log").open("wb") as log:
                words = [name, "-D", "-f", str(conf)]
                daemons.append(subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True))
        _wait_until_idle(folder)
        yield conf
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], capture_output=True, timeout=30)
            subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=30)
        _wait_until_empty()
        for daemon in daemons[::-1]:
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _asked(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.strip()
    except subprocess.TimeoutExpired:
        return "no answer"


def _wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while _asked("sinfo", "--noheader", "--format=%T") != "idle":
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"SLURM does not come up:\n{logs}")
        time.sleep(0.5)


def _wait_until_empty() -> None:
    deadline = time.monotonic() + 30
    while _asked("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.5)
