"""The launch scripts, with stand-ins for python, gcloud, srun, scontrol and nvidia-smi that note their arguments."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
FLAGS = ["--config=configs/mfn.py", "--config.wave_ops[0].p=0.3", "--workdir=/mnt/shared/it's mine"]


def run(script, *args, env=(), **options):
    """A finished script; variables of the person who runs the tests do not reach it."""
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR")}
    command = ["bash", str(LAUNCH / script), *args]
    return subprocess.run(command, env=clean | dict(env), capture_output=True, text=True, timeout=30, **options)


def stand_in(folder, name, body):
    """An executable that adds its arguments as a line to folder/calls, then does `body`."""
    path = folder / name
    # one write a line, since several processes may write at once
    path.write_text(f'#!/usr/bin/env bash\nprintf -v line "%q " {name} "$@"\necho "$line" >>{folder}/calls\n{body}\n')
    path.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def calls(folder):
    """The calls of stand-ins so far, each a list of words."""
    path = folder / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_there_are_scripts():
    assert {path.name for path in SCRIPTS} == {"local_processes.sh", "slurm.sbatch", "tpu_vm.sh"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_bash_reads_it(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed (extra `test`)")
def test_shellcheck():
    assert subprocess.run([SHELLCHECK, *SCRIPTS], capture_output=True, text=True).stdout == ""


# ---- local_processes.sh

# In place of python: process I does what is in FAKES/I, after `asked` has been made the answer to SIGTERM.
FAKE = """
process=${!#}; process=${process#--process=}
trap 'echo asked >>$FAKES/asked_$process; exit 75' TERM
echo "cpu devices: $JAX_NUM_CPU_DEVICES" >$FAKES/env_$process
echo "I am $process"
touch $FAKES/up_$process
. $FAKES/$process
"""
WAIT = "for _ in {1..200}; do sleep 0.1; done"  # in short naps, since bash answers a signal between commands


def processes(tmp_path, *bodies):
    """Environment in which process I of local_processes.sh runs bodies[I]."""
    for i, body in enumerate(bodies):
        (tmp_path / str(i)).write_text(body)
    stand_in(tmp_path, "python", FAKE)
    return {"PYTHON": str(tmp_path / "python"), "FAKES": str(tmp_path), "LOGS": str(tmp_path / "logs")}


def asked(tmp_path):
    return sorted(path.name for path in tmp_path.glob("asked_*"))


def test_local_processes_start_with_their_flags(tmp_path):
    env = processes(tmp_path, "", "", "") | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = run("local_processes.sh", "3", *FLAGS, env=env)
    assert done.returncode == 0
    ours = sorted(calls(tmp_path), key=lambda words: words[-1])
    address = ours[0][-3]
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d+", address)
    head = ["python", "-m", "asdjax.main", *FLAGS, address, "--processes=3"]
    assert ours == [[*head, f"--process={i}"] for i in range(3)]
    assert [(tmp_path / f"env_{i}").read_text() for i in range(3)] == ["cpu devices: 4\n"] * 3
    assert done.stdout == "I am 0\n"
    assert [(tmp_path / f"logs/process_{i}.log").read_text() for i in (1, 2)] == ["I am 1\n", "I am 2\n"]


@pytest.mark.parametrize("failing", [0, 2])
def test_local_processes_end_the_others_of_a_failed_one(tmp_path, failing):
    bodies = [WAIT] * 3
    bodies[failing] = "while ! [ -e $FAKES/up_0 -a -e $FAKES/up_1 -a -e $FAKES/up_2 ]; do sleep 0.1; done; exit 3"
    done = run("local_processes.sh", "3", env=processes(tmp_path, *bodies))
    assert done.returncode == 3
    assert asked(tmp_path) == [f"asked_{i}" for i in range(3) if i != failing]
    assert f"process {failing} ended with exit code 3" in done.stderr


def test_local_processes_leave_the_others_of_a_preempted_one_time_to_save(tmp_path):
    saving = "sleep 0.5; touch $FAKES/saved; exit 75"
    done = run("local_processes.sh", "2", env=processes(tmp_path, saving, "exit 75"))
    assert done.returncode == 75
    assert (tmp_path / "saved").exists() and asked(tmp_path) == []


def test_local_processes_kill_what_does_not_end(tmp_path):
    deaf = "trap '' TERM; " + WAIT + "; touch $FAKES/survived"
    done = run("local_processes.sh", "2", env=processes(tmp_path, deaf, "exit 4") | {"GRACE": "0"})
    assert done.returncode == 4 and not (tmp_path / "survived").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_processes_are_all_asked_to_stop(tmp_path, number):
    env = os.environ | processes(tmp_path, WAIT, WAIT)
    script = subprocess.Popen(["bash", LAUNCH / "local_processes.sh", "2"], env=env, stderr=subprocess.DEVNULL)
    while not ((tmp_path / "up_0").exists() and (tmp_path / "up_1").exists()):
        assert script.poll() is None
        time.sleep(0.02)
    script.send_signal(number)
    assert script.wait(timeout=10) == 75
    assert asked(tmp_path) == ["asked_0", "asked_1"]


def test_local_processes_share_out_gpus(tmp_path):
    env = stand_in(tmp_path, "nvidia-smi", "echo 0; echo 1") | {"DRY_RUN": "1"}

    def first_words(n, **more):
        return [shlex.split(line)[:2] for line in run("local_processes.sh", n, env=env | more).stdout.splitlines()]

    assert first_words("2") == [["env", "CUDA_VISIBLE_DEVICES=0"], ["env", "CUDA_VISIBLE_DEVICES=1"]]
    assert calls(tmp_path) == [["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]]
    chosen = first_words("2", CUDA_VISIBLE_DEVICES="3,5")
    assert chosen == [["env", "CUDA_VISIBLE_DEVICES=3"], ["env", "CUDA_VISIBLE_DEVICES=5"]]
    assert first_words("3", JAX_PLATFORMS="cpu") == [["python", "-m"]] * 3
    refused = run("local_processes.sh", "3", env=env)
    assert refused.returncode == 2 and "3 processes need 3 GPUs, there are 2" in refused.stderr


@pytest.mark.parametrize("args", [(), ("0",), ("two",), ("--config=configs/mfn.py",)])
def test_local_processes_want_a_number(args):
    done = run("local_processes.sh", *args)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


# ---- tpu_vm.sh

SLICE = {"NAME": "asd", "ZONE": "us-west4-a", "PAUSE": "0"}
MOUNT = "sudo mount -t nfs 10.0.0.2:/share /mnt/shared"
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
ALL = ["asd", "--zone=us-west4-a", "--worker=all"]


def dry(*args, **env):
    """The commands that tpu_vm.sh would run, each a list of words."""
    done = run("tpu_vm.sh", "--dry-run", *args, env=SLICE | env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def remote(words):
    """The shell commands of an ssh to all workers, as words."""
    assert words[:-1] == [*TPU_VM, "ssh", *ALL] and words[-1].startswith("--command=")
    return shlex.split(words[-1].removeprefix("--command="))


def test_tpu_create():
    made = [*TPU_VM, "create", "asd", "--zone=us-west4-a"]
    assert dry("create") == [[*made, "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]]
    other = dry("create", TYPE="v4-32", VERSION="tpu-ubuntu2204-base", SPOT="1")
    assert other == [[*made, "--accelerator-type=v4-32", "--spot", "--version=tpu-ubuntu2204-base"]]
    queued = dry("create", QUEUED="1", SPOT="1")
    assert queued[0][:6] == [*QUEUE, "create", "asd"]
    wanted = {"--node-id=asd", "--spot", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"}
    assert set(queued[0][6:]) == wanted | {"--zone=us-west4-a"}
    assert queued[1] == [*QUEUE, "describe", "asd", "--zone=us-west4-a", "--format=value(state.state)"]


def test_tpu_install_on_all_workers():
    tar, copy, install = dry("install", TMPDIR="/tmp")
    assert tar[:3] == ["tar", "-czf", "/tmp/asd.tar.gz"]
    root = tar[tar.index("-C") + 1]
    assert all((Path(root) / name).exists() for name in tar[tar.index("-C") + 2 :])
    assert copy == [*TPU_VM, "scp", "/tmp/asd.tar.gz", "asd:asdjax.tar.gz", "--zone=us-west4-a", "--worker=all"]
    words = remote(install)
    assert words[-8:] == ["python3.11", "-m", "venv", ".venv", "&&", ".venv/bin/pip", "install", ".[tpu]"]


def test_tpu_run_on_all_workers():
    program = [".venv/bin/python", "-m", "asdjax.main", "--distributed", *FLAGS]
    (command,) = dry("run", *FLAGS)
    assert remote(command) == ["cd", "~/asdjax", "&&", "exec", *program]
    (mounting,) = dry("run", *FLAGS, MOUNT=MOUNT)
    words = remote(mounting)
    assert words[:4] == ["{", "mountpoint", "-q", "/mnt/shared"] and words[-len(program) :] == program
    assert f"&& {MOUNT}; }}; }} && cd ~/asdjax && exec " in mounting[-1]


def test_tpu_delete():
    assert dry("delete") == [[*TPU_VM, "delete", "asd", "--zone=us-west4-a", "--quiet"]]
    assert dry("delete", QUEUED="1") == [[*QUEUE, "delete", "asd", "--zone=us-west4-a", "--force", "--quiet"]]


def test_tpu_resume_loop_dry():
    run_, state, *again = dry("resume-loop", *FLAGS, MOUNT=MOUNT)
    assert [run_] == dry("run", *FLAGS, MOUNT=MOUNT)
    assert state == [*TPU_VM, "describe", "asd", "--zone=us-west4-a", "--format=value(state)"]
    assert again == [*dry("delete"), *dry("create"), *dry("install")]


def test_tpu_dry_runs_call_nothing(tmp_path):
    env = SLICE | stand_in(tmp_path, "gcloud", "") | stand_in(tmp_path, "tar", "") | {"MOUNT": MOUNT, "QUEUED": "1"}
    for command in ("create", "install", "run", "resume-loop", "delete"):
        by_flag = run("tpu_vm.sh", "--dry-run", command, env=env)
        by_variable = run("tpu_vm.sh", command, env=env | {"DRY_RUN": "1"})
        assert by_flag.stdout == by_variable.stdout != ""
    assert calls(tmp_path) == []


# gcloud's answers: the next line of `states` to a describe, the exit code in the next line of `codes` to a run; what is
# to be deleted is never there.
GCLOUD = """
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
*describe*) next %(folder)s/states ;;
*asdjax.main*) exit "$(next %(folder)s/codes)" ;;
*delete*) exit 1 ;;
esac
"""


def loop(tmp_path, states, codes, **more):
    """(finished resume-loop, the verbs of gcloud in order) with these answers of gcloud."""
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    (tmp_path / "codes").write_text("\n".join(map(str, codes)) + "\n")
    env = (
        SLICE | stand_in(tmp_path, "gcloud", GCLOUD % {"folder": tmp_path}) | {"MOUNT": MOUNT, "TMPDIR": str(tmp_path)}
    )
    done = run("tpu_vm.sh", "resume-loop", *FLAGS, env=env | more)
    return done, ["run" if "asdjax.main" in words[-1] else words[4] for words in calls(tmp_path)]


def test_tpu_resume_loop_runs_again_after_preemption(tmp_path):
    done, verbs = loop(tmp_path, ["READY", "READY"], [75, 0])
    assert done.returncode == 0
    assert verbs == ["describe", "run", "describe", "run"]
    runs = [words for words in calls(tmp_path) if "asdjax.main" in words[-1]]
    assert runs[0] == runs[1] == dry("run", *FLAGS, MOUNT=MOUNT)[0]


@pytest.mark.parametrize("gone", ["PREEMPTED", "TERMINATED", ""])
def test_tpu_resume_loop_makes_a_lost_slice_anew(tmp_path, gone):
    done, verbs = loop(tmp_path, ["READY", gone, gone, "READY"], [255, 0])
    assert done.returncode == 0
    assert verbs == ["describe", "run", "describe", "describe", "delete", "create", "scp", "ssh", "describe", "run"]


def test_tpu_resume_loop_waits_for_a_slice_under_repair_and_for_the_queue(tmp_path):
    states = ["REPAIRING", "", "WAITING_FOR_RESOURCES", "ACTIVE", "READY"]
    done, verbs = loop(tmp_path, states, [0], QUEUED="1")
    assert done.returncode == 0
    new = ["delete", "create", "describe", "describe", "scp", "ssh"]
    assert verbs == ["describe", "describe", *new, "describe", "run"]


def test_tpu_resume_loop_stops_at_a_failure_of_the_run(tmp_path):
    done, verbs = loop(tmp_path, ["READY", "READY"], [1])
    assert done.returncode == 1 and verbs == ["describe", "run", "describe"]


def test_tpu_resume_loop_stops_where_the_queue_gives_nothing(tmp_path):
    done, verbs = loop(tmp_path, ["", "FAILED"], [0], QUEUED="1")
    assert done.returncode == 1 and "the request for asd is FAILED" in done.stderr
    assert verbs == ["describe", "delete", "create", "describe"]


def test_tpu_usage(tmp_path):
    env = stand_in(tmp_path, "gcloud", "")
    for args, variables, said in (
        (("start",), SLICE, "usage:"),
        (("create",), {"NAME": "asd"}, "NAME and ZONE are not both set"),
        (("resume-loop",), SLICE, "resume-loop needs MOUNT"),
    ):
        done = run("tpu_vm.sh", *args, env=env | variables)
        assert done.returncode == 2 and said in done.stderr
    assert calls(tmp_path) == []


# ---- slurm.sbatch


def test_slurm_options_come_before_the_first_command():
    """sbatch reads no #SBATCH line after it."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split() for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
    assert all(len(words) == 2 for words in options)
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= {words[1] for words in options}


@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (75, True)])
def test_slurm_requeues_on_75_alone(tmp_path, code, requeued):
    env = stand_in(tmp_path, "srun", f"exit {code}") | stand_in(tmp_path, "scontrol", "")
    done = run("slurm.sbatch", *FLAGS, env=env | {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8"})
    assert done.returncode == code
    srun, *rest = calls(tmp_path)
    assert srun[-len(FLAGS) - 4 :] == [".venv/bin/python", "-m", "asdjax.main", "--distributed", *FLAGS]
    assert {"--kill-on-bad-exit=0", "--cpus-per-task=8"} <= set(srun)
    assert rest == ([["scontrol", "requeue", "42"]] if requeued else [])


def test_slurm_dry_run(tmp_path):
    env = stand_in(tmp_path, "srun", "") | {"DRY_RUN": "1", "PYTHON": "python3"}
    done = run("slurm.sbatch", *FLAGS, env=env)
    assert shlex.split(done.stdout)[-len(FLAGS) - 4 :] == ["python3", "-m", "asdjax.main", "--distributed", *FLAGS]
    assert done.returncode == 0 and calls(tmp_path) == []


# ---- gke_jobset.yaml


def test_gke_jobset():
    claim, jobset = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]

    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"] == x * y // container["resources"]["limits"]["google.com/tpu"]
    assert container["command"][:4] == ["python", "-m", "asdjax.main", "--distributed"]

    # A pod's 75 fails the job with the reason for which the JobSet restarts without counting; Kubernetes takes a
    # podFailurePolicy only with restartPolicy Never.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"][0] == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [75]},
    }
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}

    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume["name"] == mount["name"] and volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for flag in container["command"]:
        if flag.startswith(("--workdir=", "--config.data.root=")):
            assert flag.partition("=")[2].startswith(mount["mountPath"] + "/")
