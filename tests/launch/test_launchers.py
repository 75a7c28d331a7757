"""Every launcher: what a dry run prints, settings, mistakes, and the published schema of what Kubernetes gets."""

import re
import shutil
import subprocess
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
