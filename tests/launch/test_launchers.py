"""Every launcher: what a dry run prints, settings, mistakes, and the published schema of what Kubernetes gets."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
LAUNCHERS = ["slurm/train.sh", "slurm/evaluate.sh", "slurm/array.sh", "gke/train.sh", "tpu_vm/train.sh", "local.sh"]
GPU = ["--image", "repo/image:1", "--nodes", "4", "--gpus-per-node", "8", "--volume", "runs", "--job", "faces"]
TPU = ["--image", "repo/image:1", "--nodes", "4", "--tpu-type", "tpu-v5-lite-podslice", "--tpu-topology", "4x4"]


def launch(name: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run([LAUNCH / name, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_is_clean():
    scripts = [*LAUNCH.rglob("*.sh"), *(ROOT / "tests/launch").glob("*.sh")]
    assert len(scripts) > len(LAUNCHERS)
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_and_mistakes(name):
    text = launch(name, "--help")
    for flag in ("--dry-run", "--list", "--logs", "--delete", "--settings"):
        assert flag in text
    assert "unknown option 'nods'" in launch(name, "--nods", "3", status=2)
    assert "needs a value" in launch(name, "--job" if "--job" in text else "--name", status=2)
    needed = ["--zone", "z"] if "tpu_vm" in name else []
    error = launch(name, "--dry-run", *needed, status=2)
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("name", LAUNCHERS)
def test_list_logs_delete_are_dry_too(name):
    needed = ["--zone", "z"] if "tpu_vm" in name else []
    if name == "local.sh":
        assert launch(name, "--dry-run", "--list") == ""
        return
    assert launch(name, "--dry-run", *needed, "--list").strip()
    assert "17" in launch(name, "--dry-run", *needed, "--logs", "17")
    assert "17" in launch(name, "--dry-run", *needed, "--delete", "17")


def test_settings_file_gives_way_to_flags(tmp_path):
    settings = tmp_path / "settings"
    settings.write_text("nodes = 3   # three\n\ntime=1:00:00\nsetup = module load cuda && true\n")
    script = launch("slurm/train.sh", "--nodes", "5", "--settings", str(settings), "--dry-run", "--", "nano")
    assert "--nodes=5" in script and "--time=1:00:00" in script and "\nmodule load cuda && true\n" in script
    settings.write_text("nodes: 3\n")
    assert "not 'name = value'" in launch("slurm/train.sh", "--settings", str(settings), "--", "nano", status=2)
    settings.write_text("nods = 3\n")
    assert "unknown option 'nods'" in launch("slurm/train.sh", "--settings", str(settings), "--", "nano", status=2)
    assert "no settings file" in launch("slurm/train.sh", "--settings", str(tmp_path / "x"), "--", "nano", status=2)


def test_slurm_script_is_a_script():
    words = ["nano", "--name", 'it\'s a $HOME "name"']
    script = launch("slurm/train.sh", "--gpus-per-node", "8", "--env", "A=1 B=two", "--dry-run", "--", *words)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert re.search(r"^#SBATCH --gpus-per-node=8$", script, re.M) and "export B=two" in script
    # The words come out of the script as they went in.
    line = next(line for line in script.splitlines() if line.startswith("words="))
    shown = subprocess.run(["bash", "-c", f"{line}; printf '%s\\n' \"${{words[@]}}\""], capture_output=True, text=True)
    assert shown.stdout.splitlines() == ["train", *words]


def test_slurm_array_has_one_job_a_line(tmp_path):
    commands = tmp_path / "commands"
    commands.write_text("train nano --name a\n\n# not this\ntrain nano --name 'b c'\n")
    script = launch("slurm/array.sh", "--commands", str(commands), "--parallel", "2", "--dry-run")
    assert "--array=0-1%2" in script and r"1) words=(train nano --name b\ c ) ;;" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    commands.write_text("train 'nano\n")
    assert "check its quotes" in launch("slurm/array.sh", "--commands", str(commands), "--dry-run", status=2)


def assert_same(asked, understood, path="") -> None:
    """Everything in the manifest is still there after the schema's own types have read it."""
    if isinstance(asked, dict):
        missing = [key for key in asked if key not in understood]
        assert not missing, f"{path}: the schema has no field {missing}"
        for key, value in asked.items():
            assert_same(value, understood[key], f"{path}.{key}")
    elif isinstance(asked, list):
        assert len(asked) == len(understood), path
        for i, (a, u) in enumerate(zip(asked, understood)):
            assert_same(a, u, f"{path}[{i}]")
    else:
        assert asked == understood, path


def read_by_schema(manifest: dict) -> dict:
    """Reads a JobSet with the types generated from the published OpenAPI schemas of JobSet and Kubernetes."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()


@pytest.mark.parametrize(
    "arguments", [GPU, TPU, [*TPU, "--slices", "2", "--spot", "1"], ["--image", "i", "--cpu", "4"]]
)
def test_jobset_has_the_published_form(arguments):
    manifest = yaml.safe_load(launch("gke/train.sh", *arguments, "--dry-run", "--", "7b", "--name", 'a "b" \\ c: #'))
    assert_same(manifest, read_by_schema(manifest))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["containers"][0]["args"][-1] == 'a "b" \\ c: #'
    assert job["parallelism"] == job["completions"]


def test_schema_check_finds_mistakes():
    manifest = yaml.safe_load(launch("gke/train.sh", *GPU, "--dry-run", "--", "7b"))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(AssertionError, match="maxRestart"):
        assert_same(manifest, read_by_schema(manifest))
    del manifest["spec"]["failurePolicy"]["maxRestart"]
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] = "four"
    with pytest.raises(ValueError, match="parallelism"):
        read_by_schema(manifest)


def test_jobset_gives_each_pod_its_place():
    from fi_jax.parallel.hosts import Cluster, detect

    manifest = yaml.safe_load(launch("gke/train.sh", *GPU, "--dry-run", "--", "7b"))
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    env = {pair["name"]: pair["value"] for pair in container["env"]}
    assert detect({**env, "JOB_COMPLETION_INDEX": "3"}) == Cluster("env", "faces-workers-0-0.faces:8476", 4, 3)
    manifest = yaml.safe_load(launch("gke/train.sh", *TPU, "--dry-run", "--", "7b"))
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert detect({pair["name"]: pair["value"] for pair in container["env"]}) == Cluster("tpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--", "7b"], "--image"),
        (["--image", "i", "--job", "Faces", "--", "7b"], "small letters"),
        (["--image", "i", "--tpu-type", "t", "--", "7b"], "--tpu-topology"),
        (["--image", "i", "--slices", "2", "--", "7b"], "for TPUs"),
        (["--image", "i", "--nodes", "two", "--", "7b"], "whole number"),
        (["--image", "i", "--slices", "0", "--", "7b"], "positive whole number"),
        (["--image", "i", "--nodes", "08", "--", "7b"], "positive whole number"),
    ],
)
def test_jobset_mistakes(arguments, says):
    assert says in launch("gke/train.sh", "--dry-run", *arguments, status=2)


def test_tpu_vm_steps_in_order():
    lines = launch(
        "tpu_vm/train.sh", "--zone", "z", "--job", "faces", "--spot", "1", "--dry-run", "--", "7b"
    ).splitlines()
    verbs = [re.search(r"tpu-vm (\w+)", line)[1] for line in lines]
    assert verbs == ["create", "ssh", "scp", "ssh", "ssh"]
    assert "--spot" in lines[0] and all("--worker=all" in line for line in lines[1:])
    assert launch("tpu_vm/train.sh", "--zone", "z", "--create", "0", "--dry-run", "--", "7b").count("create") == 0


def test_local_gives_each_process_its_place():
    lines = launch("local.sh", "--processes", "2", "--devices", "4", "--dry-run", "--", "train", "tiny").splitlines()
    assert [re.search(r"FI_JAX_PROCESS_ID=(\d)", line)[1] for line in lines] == ["0", "1"]
    assert all("JAX_NUM_CPU_DEVICES=4" in line for line in lines)
    assert "FI_JAX_COORDINATOR" not in launch("local.sh", "--dry-run", "--", "train", "tiny")


def test_local_runs_and_passes_the_status_on():
    assert "fi-jax train" in launch("local.sh", "--", "train", "--help")
    assert (
        "unknown command"
        in subprocess.run(
            [LAUNCH / "local.sh", "--restarts", "3", "--", "trian"], capture_output=True, text=True, cwd=ROOT
        ).stdout
    )


@pytest.mark.parametrize(
    ("launcher", "arguments", "says"),
    [
        ("slurm/train.sh", ["--name", "a b"], "--name is 'a b'"),
        ("slurm/train.sh", ["--name", "a\n#SBATCH --uid=0"], "line breaks"),
        ("slurm/train.sh", ["--time", "1\nrm -rf x"], "line breaks"),
        ("slurm/train.sh", ["--time", "1 --uid=0"], "--time is '1 --uid=0'"),
        ("slurm/train.sh", ["--max-restarts", "1; rm x"], "whole number"),
        ("slurm/train.sh", ["--env", "A=1\nrm -rf x"], "line breaks"),
        ("slurm/train.sh", ["--env", "A;rm=1"], "NAME=value"),
        ("gke/train.sh", ["--image", "i", "--env", "A=1\nB=2"], "line breaks"),
        ("gke/train.sh", ["--image", "i", "--memory", "1\n  x: y"], "line breaks"),
        ("gke/train.sh", ["--image", "i", "--namespace", "a/b"], "Kubernetes name"),
        ("tpu_vm/train.sh", ["--zone", "z", "--env", "A-B=1"], "NAME=value"),
        ("tpu_vm/train.sh", ["--zone", "z", "--max-restarts", "1); rm x"], "whole number"),
        ("local.sh", ["--job", "../victim"], "--job is '../victim'"),
        ("local.sh", ["--processes", "2", "--heartbeat", "1 X=2"], "whole number"),
        ("local.sh", ["--processes", "9" * 20], "1 to 99"),
        ("local.sh", ["--state-dir", ""], "--state-dir is ''"),
    ],
)
def test_values_cannot_mean_something_else(launcher, arguments, says):
    assert says in launch(launcher, *arguments, "--dry-run", "--", "7b", status=2)


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        ("local.sh", "../victim"),
        ("local.sh", "."),
        ("local.sh", ""),
        ("slurm/train.sh", "*"),
        ("gke/train.sh", "x,y"),
        ("tpu_vm/train.sh", "-x"),
    ],
)
@pytest.mark.parametrize("action", ["--delete", "--logs"])
def test_names_of_jobs_are_names(tmp_path, launcher, name, action):
    victim, state = tmp_path / "victim", tmp_path / "state"
    for folder in (victim, state):
        folder.mkdir()
        (folder / "log").write_text("precious")
    options = ["--state-dir", str(state)] if launcher == "local.sh" else []
    options += ["--zone", "z"] if launcher == "tpu_vm/train.sh" else []
    assert f"{action} is '{name}'" in launch(launcher, *options, f"{action}={name}", status=2)
    assert (victim / "log").read_text() == (state / "log").read_text() == "precious"


def test_only_jobs_are_deleted(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    assert "no job 'photos'" in launch("local.sh", "--state-dir", str(tmp_path), "--delete", "photos", status=2)
    assert folder.is_dir() and launch("local.sh", "--state-dir", str(tmp_path), "--list") == ""


def test_a_job_whose_launcher_was_killed_is_still_one(tmp_path):
    """Its processes train on: they are listed, kept from a second start, and ended with the job."""
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/bash\n[ $1 != -c ] || exec python3 "$@"\ntrap "exit 75" TERM\necho up\nwhile :; do sleep 0.1; done\n'
    )
    program.chmod(0o755)
    options = ["--state-dir", str(tmp_path)]
    command = [*options, "--background", "1", "--job", "j", "--python", str(program), "--", "train", "tiny"]
    launch("local.sh", *command)
    leader = int((tmp_path / "j/pid").read_text())
    deadline = time.monotonic() + 20
    while "up" not in (tmp_path / "j/log").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(leader, signal.SIGKILL)
    assert "running" in launch("local.sh", *options, "--list")
    assert "is running" in launch("local.sh", *command, status=2)
    launch("local.sh", *options, "--delete", "j")
    # A signal is sent before it has done its work.
    while processes_of(leader) and time.monotonic() < deadline + 20:
        time.sleep(0.1)
    assert not processes_of(leader) and not (tmp_path / "j").exists()


def processes_of(group: int) -> list[str]:
    return subprocess.run(["pgrep", "-r", "D,R,S", "-g", str(group)], capture_output=True, text=True).stdout.split()


def test_nothing_is_submitted_when_an_option_is_wrong(tmp_path):
    """A script that ends in the middle would be a job that does nothing, or half of something."""
    (tmp_path / "sbatch").write_text(f"#!/bin/bash\ntouch {tmp_path}/submitted\n")
    (tmp_path / "sbatch").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [LAUNCH / "slurm/train.sh", "--log-dir", tmp_path, "--env", "wrong", "--", "nano"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and not (tmp_path / "submitted").exists()


def test_line_breaks_in_arguments_survive():
    manifest = yaml.safe_load(launch("gke/train.sh", *GPU, "--dry-run", "--", "7b", "--name", "a\nb\tc"))
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-1] == "a\nb\tc"


@pytest.mark.parametrize(
    ("launcher", "options", "mesh", "says"),
    [
        ("tpu_vm/train.sh", ["--zone", "z", "--type", "v5litepod-16"], ["--mesh.fsdp", "16"], ""),
        (
            "tpu_vm/train.sh",
            ["--zone", "z", "--type", "v5litepod-16"],
            ["--mesh.data=8", "--mesh.fsdp=4"],
            "v5litepod-16 has 16",
        ),
        # The number of a v5p counts cores, two a chip.
        ("tpu_vm/train.sh", ["--zone", "z", "--type", "v5p-16"], ["--mesh.data", "16"], "v5p-16 has 8"),
        ("gke/train.sh", TPU, ["--mesh.data", "-1", "--mesh.fsdp", "8"], ""),
        ("gke/train.sh", TPU, ["--mesh.data=1", "--mesh.fsdp=4", "--mesh.tensor=2"], "multiplies to 8"),
        ("gke/train.sh", [*TPU, "--slices", "2"], ["--mesh.data=2", "--mesh.fsdp=16"], ""),
        ("gke/train.sh", [*TPU, "--slices", "2"], ["--mesh.fsdp=-1"], "mesh.data is 1; with --slices 2"),
        ("gke/train.sh", GPU, ["--mesh.data", "3"], "multiplies to 3"),
    ],
)
def test_the_mesh_must_fit_the_devices(launcher, options, mesh, says):
    assert says in launch(launcher, *options, "--dry-run", "--", "7b", *mesh, status=2 if says else 0)


@pytest.mark.parametrize(
    ("launcher", "options", "words", "plan"),
    [
        (
            "tpu_vm/train.sh",
            ["--zone", "z", "--type", "v5litepod-16"],
            ["--mesh.fsdp", "16", "--name", "x", "--train.accumulate", "1", "--model.remat=full"],
            "--mesh fsdp=16,data=1 --topology v5e:4x4 --train.accumulate 1 --model.remat=full",
        ),
        (
            "tpu_vm/train.sh",
            ["--zone", "z", "--type", "v5p-16"],
            ["--mesh.data=2", "--mesh.fsdp=-1"],
            "--mesh data=2,fsdp=4 --topology v5p:2x2x2",
        ),
        ("gke/train.sh", [*TPU, "--slices", "2"], ["--mesh.fsdp=16"], "--mesh fsdp=16,data=2 --topology v5e:4x4*2"),
        ("gke/train.sh", GPU, ["--mesh.fsdp=8"], "--topology h100:"),
    ],
)
def test_a_dry_run_says_how_to_plan_it(launcher, options, words, plan):
    env = {name: value for name, value in os.environ.items() if name != "FI_JAX_LIBTPU"}
    command = [LAUNCH / launcher, *options, "--dry-run", "--", "7b", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert "plan: python3 -m fi_jax plan 7b " in done.stderr and plan in done.stderr.replace("\\", "")


def test_topology_must_be_that_of_the_nodes():
    assert "has 16 chips" in launch("gke/train.sh", *TPU, "--nodes", "2", "--dry-run", "--", "7b", status=2)


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        # Both save, one slower than the grace of a failure.
        ("exit 75", "sleep 7; echo saved; exit 75", 75),
        # One is killed meanwhile, or had not begun to listen; the other still saves.
        ("kill -9 $$", "sleep 2; echo saved; exit 75", 75),
        ("trap - TERM; kill $$", "sleep 2; echo saved; exit 75", 75),
        # A failure stays one.
        ("exit 1", "sleep 2; echo saved; exit 75", 1),
    ],
)
def test_local_waits_for_processes_that_save(tmp_path, first, second, status):
    """SIGTERM to the launcher: it waits for all, and passes on the status that asks for another start."""
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/bash\n[ $1 != -c ] || exec python3 "$@"\n'
        f'if [ "$FI_JAX_PROCESS_ID" = 0 ]; then trap "{first}" TERM; else trap "{second}" TERM; fi\n'
        "echo up\nwhile :; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    command = [LAUNCH / "local.sh", "--processes", "2", "--python", str(program), "--", "train", "tiny"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert job.stdout is not None and {job.stdout.readline(), job.stdout.readline()} == {"[0] up\n", "[1] up\n"}
    job.terminate()
    out, error = job.communicate(timeout=60)
    assert "[1] saved" in out and "unbound" not in error, (out, error)
    assert job.returncode == status


def test_local_starts_nothing_after_a_signal(tmp_path):
    """SIGTERM while the port is looked for: no process is started, and the status asks for another start."""
    program = tmp_path / "program"
    program.write_text('#!/bin/bash\n[ $1 = -c ] || exec sleep 60\nkill $(ps -o pgid= -p $$)\nexec python3 "$@"\n')
    program.chmod(0o755)
    command = [LAUNCH / "local.sh", "--processes", "2", "--python", str(program), "--", "train", "tiny"]
    job = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, start_new_session=True, timeout=30)
    assert (job.returncode, job.stdout, job.stderr) == (75, "", "")
