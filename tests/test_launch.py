"""The launch scripts: they parse, a dry run says what would be run, and a mistake is one line."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p for p in (REPOSITORY / "launch").iterdir() if p.is_file())
POD = {"NAME": "pod", "ZONE": "zone-a", "TYPE": "v6e-32", "VERSION": "image", "PROJECT": "project"}
ARGUMENTS = ["configs/cmae.py", "/shared/run 1", "--config.seed=3"]


def launch(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a launch script with no settings of the user's but `variables`."""
    return subprocess.run(
        ["bash", str(REPOSITORY / "launch" / script), *arguments],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_scripts_are_there() -> None:
    assert {"local.sh", "slurm.sbatch", "tpu_pod.sh"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "tpu_pod.sh"])
@pytest.mark.parametrize("given", [[], ["--dry-run"], ["--dry-run", "configs/mae.py"]])
def test_too_few_arguments_are_a_usage_error(script: str, given: list[str]) -> None:
    shown = launch(script, *given, **POD)
    assert shown.returncode == 2
    assert shown.stderr.startswith("usage: ")
    assert shown.stderr.count("\n") == 1
    assert not shown.stdout


def test_local_runs_the_train_command() -> None:
    shown = launch("local.sh", "--dry-run", *ARGUMENTS)
    assert shown.returncode == 0, shown.stderr
    command = shlex.split(shown.stdout)
    assert Path(command[0]).name == "occinv"
    expected = ["train", "--config", ARGUMENTS[0], "--workdir", ARGUMENTS[1], ARGUMENTS[2]]
    assert command[1:] == expected


def test_local_hands_the_exit_status_on(tmp_path: Path) -> None:
    """Not a dry run: a stand-in for occinv, in a checkout of its own, sees the arguments."""
    script = tmp_path / "launch" / "local.sh"
    script.parent.mkdir()
    script.write_text((REPOSITORY / "launch" / "local.sh").read_text())
    occinv = tmp_path / ".venv" / "bin" / "occinv"
    occinv.parent.mkdir(parents=True)
    occinv.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    occinv.chmod(0o755)
    shown = subprocess.run(
        ["bash", script, *ARGUMENTS], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 7
    assert shown.stdout.splitlines()[1:] == [
        *["train", "--config", ARGUMENTS[0], "--workdir", ARGUMENTS[1], ARGUMENTS[2]]
    ]


def test_slurm_gives_a_process_every_gpu_of_its_node() -> None:
    shown = launch("slurm.sbatch", "--dry-run", *ARGUMENTS, SLURM_GPUS_ON_NODE="4")
    assert shown.returncode == 0, shown.stderr
    devices, command = shown.stdout.splitlines()
    assert devices == "JAX_LOCAL_DEVICE_IDS=0,1,2,3"
    words = shlex.split(command)
    assert words[0] == "srun"
    expected = [
        "train",
        "--distributed",
        "--config",
        ARGUMENTS[0],
        "--workdir",
        ARGUMENTS[1],
        ARGUMENTS[2],
    ]
    assert words[-len(expected) :] == expected


def test_slurm_asks_for_one_task_a_node_and_a_warning_in_time() -> None:
    text = (REPOSITORY / "launch" / "slurm.sbatch").read_text()
    header = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH " in line]
    assert {"--ntasks-per-node=1", "--signal=TERM@300", "--requeue"} <= set(header)


def test_tpu_pod_runs_the_train_command_on_all_workers() -> None:
    shown = launch("tpu_pod.sh", "--dry-run", *ARGUMENTS, **POD)
    assert shown.returncode == 0, shown.stderr
    steps = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert [step[0] for step in steps] == ["gcloud", "git", "gcloud", "gcloud", "gcloud"]
    cloud = [step for step in steps if step[0] == "gcloud"]
    assert [step[4] for step in cloud] == ["create", "scp", "ssh", "ssh"]
    for step in cloud:
        assert step[step.index("--zone") + 1] == POD["ZONE"]
        assert step[step.index("--project") + 1] == POD["PROJECT"]
    for step in cloud[1:]:
        assert "--worker=all" in step
    assert cloud[0][cloud[0].index("--accelerator-type") + 1] == POD["TYPE"]
    install, train = (step[-1] for step in cloud[2:])
    assert "-e '.[tpu]'" in install
    words = shlex.split(train.removeprefix("cd occinv && "))
    assert words[0] == ".venv/bin/occinv"
    assert words[1:] == [
        "train",
        "--distributed",
        "--config",
        ARGUMENTS[0],
        "--workdir",
        *ARGUMENTS[1:],
    ]


@pytest.mark.parametrize("missing", sorted(POD))
def test_tpu_pod_names_the_setting_that_is_missing(missing: str) -> None:
    given = {name: value for name, value in POD.items() if name != missing}
    shown = launch("tpu_pod.sh", "--dry-run", *ARGUMENTS, **given)
    assert shown.returncode == 2
    assert missing in shown.stderr
    assert not shown.stdout


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "runs/cmae"])
def test_tpu_pod_refuses_a_folder_of_one_worker(workdir: str) -> None:
    shown = launch("tpu_pod.sh", "--dry-run", "configs/mae.py", workdir, **POD)
    assert shown.returncode == 2
    assert workdir in shown.stderr
    assert not shown.stdout
