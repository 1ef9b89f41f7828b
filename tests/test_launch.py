"""Tests of the launch scripts: syntax, dry runs, and one-line errors."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from occinv.cli import make_parser

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p for p in (REPOSITORY / "launch").iterdir() if p.is_file())
POD = {"NAME": "pod", "ZONE": "zone-a", "TYPE": "v6e-32", "VERSION": "image", "PROJECT": "project"}
JOBSET = {"NAME": "mae", "IMAGE": "image", "HOSTS": "4", "CHIPS": "8", "VOLUME": "disk"}
ARGUMENTS = ["configs/cmae.py", "/shared/run 1", "--config.seed=3"]


def launch(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a launch script with `variables` as its only settings."""
    return subprocess.run(
        ["bash", str(REPOSITORY / "launch" / script), *arguments],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_these_scripts_exist() -> None:
    assert [script.name for script in SCRIPTS] == [
        "kubernetes.sh",
        "local.sh",
        "processes.sh",
        "slurm.sbatch",
        "tpu_pod.sh",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", ["kubernetes.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh"])
@pytest.mark.parametrize("given", [[], ["--dry-run"], ["--dry-run", "configs/mae.py"]])
def test_too_few_arguments_are_a_usage_error(script: str, given: list[str]) -> None:
    shown = launch(script, *given, **(POD | JOBSET))
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


@pytest.mark.parametrize("script", ["kubernetes.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_a_script_runs_a_sweep(script: str) -> None:
    settings = {**POD, **JOBSET, "INSTALL": "occinv"}
    shown = launch(script, "--dry-run", "sweep", *ARGUMENTS, "--seeds", "2", **settings)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"occinv\\? sweep\\? ", shown.stdout)
    assert not re.search(r"occinv\\? train", shown.stdout)


def test_processes_run_a_sweep() -> None:
    shown = launch("processes.sh", "--dry-run", "sweep", "2", *ARGUMENTS)
    assert shown.returncode == 0, shown.stderr
    assert [shlex.split(line)[1] for line in shown.stdout.splitlines()] == ["sweep", "sweep"]


def test_a_job_of_a_slurm_array_is_a_worker_of_a_sweep() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "3"}
    words = shlex.split(launch("slurm.sbatch", "--dry-run", "sweep", *ARGUMENTS, **array).stdout)
    assert words[words.index("--jobs") + 1 :][:3] == ["2", "of", "3"]
    assert "--jobs" not in launch("slurm.sbatch", "--dry-run", *ARGUMENTS, **array).stdout


def test_local_returns_the_exit_status(tmp_path: Path) -> None:
    """Run a fake occinv in another checkout. It prints its arguments."""
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


def test_slurm_gives_a_process_all_gpus_of_its_node() -> None:
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


def test_slurm_requests_one_task_per_node_and_sigterm_in_time() -> None:
    text = (REPOSITORY / "launch" / "slurm.sbatch").read_text()
    header = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH " in line]
    assert {"--ntasks-per-node=1", "--signal=TERM@300", "--requeue"} <= set(header)


def test_tpu_pod_runs_the_train_command_on_all_workers() -> None:
    shown = launch("tpu_pod.sh", "--dry-run", *ARGUMENTS, **POD)
    assert shown.returncode == 0, shown.stderr
    steps = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert [step[0] for step in steps] == ["git", "gcloud", "gcloud", "gcloud", "gcloud"]
    cloud = [step for step in steps if step[0] == "gcloud"]
    assert [step[4] for step in cloud] == ["create", "scp", "ssh", "ssh"]
    for step in cloud:
        assert step[step.index("--zone") + 1] == POD["ZONE"]
        assert step[step.index("--project") + 1] == POD["PROJECT"]
    for step in cloud[1:]:
        assert "--worker=all" in step
    assert cloud[0][cloud[0].index("--accelerator-type") + 1] == POD["TYPE"]
    install, train = (step[-1] for step in cloud[2:])
    assert shlex.split(install)[-2:] == ["-e", ".[tpu,gcs]"]
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


def test_tpu_pod_queues_for_a_spot_slice() -> None:
    shown = launch("tpu_pod.sh", "--dry-run", *ARGUMENTS, **POD, QUEUE="1", SPOT="1")
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout.splitlines()[1])
    assert words[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert "--spot" in words
    assert words[words.index("--node-id") + 1] == POD["NAME"]
    assert words[words.index("--runtime-version") + 1] == POD["VERSION"]


def test_tpu_pod_creates_a_preempted_slice_again(tmp_path: Path) -> None:
    """Run a fake gcloud: the slice is preempted in the first training; the second one succeeds."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        "#!/bin/bash\n"
        f"cd {tmp_path}\n"
        'case "$*" in\n'
        "  *describe*) cat state 2> /dev/null;;\n"
        "  *create*) echo READY > state; echo create >> calls;;\n"
        "  *delete*) rm -f state; echo delete >> calls;;\n"
        "  *train*) echo train >> calls\n"
        "    if [ ! -e first ]; then touch first; echo PREEMPTED > state; exit 1; fi;;\n"
        "esac\n"
    )
    gcloud.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    shown = launch("tpu_pod.sh", *ARGUMENTS, **POD, PATH=path)
    assert shown.returncode == 0, shown.stderr
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["create", "train", "delete", "create", "train"]


def test_tpu_pod_returns_a_failure(tmp_path: Path) -> None:
    """A run that fails on a healthy slice is not started again."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        '#!/bin/bash\ncase "$*" in *describe*) echo READY;; *train*) echo once; exit 2;; esac\n'
    )
    gcloud.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    shown = launch("tpu_pod.sh", *ARGUMENTS, **POD, PATH=path)
    assert shown.returncode == 2
    assert shown.stdout.splitlines().count("once") == 1


@pytest.mark.parametrize("missing", sorted(POD))
def test_tpu_pod_names_the_missing_setting(missing: str) -> None:
    given = {name: value for name, value in POD.items() if name != missing}
    shown = launch("tpu_pod.sh", "--dry-run", *ARGUMENTS, **given)
    assert shown.returncode == 2
    assert missing in shown.stderr
    assert not shown.stdout


def test_tpu_pod_refuses_a_workdir_that_is_not_shared() -> None:
    shown = launch("tpu_pod.sh", "--dry-run", "mae", "runs/cmae", **POD)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "runs/cmae" in shown.stderr


def test_tpu_pod_takes_a_bucket_and_a_git_reference() -> None:
    reference = "occinv[tpu,gcs] @ git+https://host.example/it's@v1"
    shown = launch("tpu_pod.sh", "--dry-run", "mae", "gs://b/run", **POD, INSTALL=reference)
    assert shown.returncode == 0, shown.stderr
    steps = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert [step[4] for step in steps] == ["create", "ssh", "ssh"]
    assert shlex.split(steps[1][-1])[-2:] == [".venv/bin/python", reference]
    assert shlex.split(steps[2][-1])[-4:] == ["--config", "mae", "--workdir", "gs://b/run"]


def test_tpu_pod_outside_a_checkout_asks_for_a_reference(tmp_path: Path) -> None:
    script = tmp_path / "launch" / "tpu_pod.sh"
    script.parent.mkdir()
    script.write_text((REPOSITORY / "launch" / "tpu_pod.sh").read_text())
    environment = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    command = ["bash", str(script), "--dry-run", "mae", "/shared/run"]
    shown = subprocess.run(
        command, env=environment | POD, capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "Set INSTALL" in shown.stderr


def test_the_readme_launches_a_pod_as_written() -> None:
    """Run every command of README that starts a launch script, with --dry-run."""
    text = (REPOSITORY / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    (.*launch/[\w.]+ .*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        dry = re.sub(r"(launch/[\w.]+)", r"\1 --dry-run", command)
        shown = subprocess.run(
            ["bash", "-c", dry],
            env={"PATH": os.environ["PATH"]},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (shown.returncode, shown.stderr) == (0, ""), command
        assert "train --distributed" in shlex.split(shown.stdout)[-1]


@pytest.mark.parametrize("script", ["local.sh", "processes.sh", "slurm.sbatch"])
def test_a_machine_without_occinv_is_a_one_line_error(script: str, tmp_path: Path) -> None:
    copy = tmp_path / "launch" / script
    copy.parent.mkdir()
    copy.write_text((REPOSITORY / "launch" / script).read_text())
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "seq"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    count = ["2"] if script == "processes.sh" else []
    shown = subprocess.run(
        ["bash", str(copy), *count, *ARGUMENTS],
        env={"PATH": str(tmp_path / "bin")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "no occinv in" in shown.stderr and shown.stderr.count("\n") == 1


@pytest.mark.parametrize("chips", ["nvidia.com/gpu", "google.com/tpu"])
def test_a_jobset_has_one_process_per_node(chips: str) -> None:
    given = [ARGUMENTS[0], "/shared/it's 1", "--config.objective.color={}"]
    tpu = {"TPU": "tpu-v5-lite-podslice", "TOPOLOGY": "4x8"} if "tpu" in chips else {}
    shown = launch("kubernetes.sh", "--dry-run", *given, **JOBSET, **tpu)
    assert shown.returncode == 0, shown.stderr
    manifest = yaml.safe_load(shown.stdout)
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "mae")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    pod = job["template"]["spec"]
    selector = pod.get("nodeSelector", {})
    assert selector.get("cloud.google.com/gke-tpu-topology") == tpu.get("TOPOLOGY")
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {chips: 8}
    shell, option, script = container["command"]
    assert (shell, option) == ("bash", "-c")
    found = subprocess.run(
        ["bash", "-c", script.replace("exec occinv", "printf '%s\\n'")],
        env={"JOB_COMPLETION_INDEX": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    options, rest = make_parser().parse_known_args(found.stdout.splitlines())
    assert options.coordinator == "mae-workers-0-0.mae:8476"
    assert (options.num_processes, options.process_id) == (4, 3)
    assert (options.config, str(options.workdir), rest) == (given[0], given[1], given[2:])


def test_a_jobset_installs_a_git_reference() -> None:
    reference = "occinv[tpu] @ git+https://host.example/it's@v1"
    shown = launch("kubernetes.sh", "--dry-run", *ARGUMENTS, **JOBSET, INSTALL=reference)
    manifest = yaml.safe_load(shown.stdout)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    install, _, train = pod["containers"][0]["command"][2].partition(" && ")
    assert shlex.split(install)[-1] == reference
    assert train.startswith("exec occinv train ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAME", "Mae"),
        ("NAME", "a\nb: c"),
        ("HOSTS", "4; rm"),
        ("CHIPS", "0"),
        ("RESTARTS", "1, a"),
        ("IMAGE", "a b"),
        ("VOLUME", "d}"),
        ("TPU", "x, y"),
    ],
)
def test_kubernetes_refuses_what_is_not_a_name_or_a_number(name: str, value: str) -> None:
    shown = launch("kubernetes.sh", "--dry-run", *ARGUMENTS, **{**JOBSET, name: value})
    assert (shown.returncode, shown.stdout) == (2, "")
    assert f"{name} is {value}" in shown.stderr


@pytest.mark.parametrize("missing", sorted(JOBSET))
def test_kubernetes_names_the_missing_setting(missing: str) -> None:
    given = {name: value for name, value in JOBSET.items() if name != missing}
    shown = launch("kubernetes.sh", "--dry-run", *ARGUMENTS, **given)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert missing in shown.stderr


def test_kubernetes_refuses_a_workdir_that_is_not_shared() -> None:
    shown = launch("kubernetes.sh", "--dry-run", "configs/mae.py", "/runs/mae", **JOBSET)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "/runs/mae" in shown.stderr


def test_processes_are_numbered_and_share_a_coordinator() -> None:
    shown = launch("processes.sh", "--dry-run", "3", *ARGUMENTS, PORT="1234")
    assert shown.returncode == 0, shown.stderr
    lines = [shlex.split(line) for line in shown.stdout.splitlines()]
    found = [make_parser().parse_known_args(words[1:])[0] for words in lines]
    assert [options.process_id for options in found] == [0, 1, 2]
    assert {options.num_processes for options in found} == {3}
    assert {options.coordinator for options in found} == {"localhost:1234"}


@pytest.mark.parametrize("count", ["0", "two", "-1"])
def test_processes_refuses_a_wrong_number(count: str) -> None:
    shown = launch("processes.sh", "--dry-run", count, *ARGUMENTS)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert f"N is {count}" in shown.stderr


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("1", 7)])
def test_processes_returns_the_exit_status(failing: str, status: int, tmp_path: Path) -> None:
    script = tmp_path / "launch" / "processes.sh"
    script.parent.mkdir()
    script.write_text((REPOSITORY / "launch" / "processes.sh").read_text())
    occinv = tmp_path / ".venv" / "bin" / "occinv"
    occinv.parent.mkdir(parents=True)
    occinv.write_text(f'#!/bin/sh\n[ "$7" != {failing} ] || exit 7\n')
    occinv.chmod(0o755)
    command = ["bash", script, "2", *ARGUMENTS]
    assert subprocess.run(command, capture_output=True, check=False).returncode == status
