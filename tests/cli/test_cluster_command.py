"""What ``cluster`` writes for Slurm, ssh and Kubernetes, and certificates."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import yaml

from ..limits import PATIENCE
from .bench import Bench, ended, files, quiet, run
from .test_cluster import Cluster
from .test_workers import bench, reference, street

__all__ = ["bench", "reference", "street"]

GPUS = ("--gpus-per-node", "4")
CPUS = ("--device", "cpu", "--cpus-per-worker", "1")


def slurm(bench: Bench, *options: str) -> str:
    """The script, which bash can read."""
    result = run("cluster", "slurm", "--manifest", str(bench.manifest), *options)
    assert (result.code, result.err) == (0, ""), result
    subprocess.run(["bash", "-n"], input=result.out, text=True, check=True)
    return result.out


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_script_asks_slurm_for_what_was_said(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "logs of 100%"
    folder.mkdir()
    more = ("--time", "1-12", "--memory", "200G", "--partition", "gpu", "--account", "lab", "--qos", "high")
    extra = ("--gpu-type", "a100", "--cpus-per-gpu", "6", "--sbatch=--mail-type=END", "--job-name", "mine")
    script = slurm(bench, "--nodes", "2", *GPUS, *more, *extra, "--folder", str(folder))
    assert directives(script) == [
        "--job-name=mine",
        "--dependency=singleton",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=6",
        "--gpus-per-node=a100:4",
        "--mem=200G",
        "--time=1-12",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        f'--output="{tmp_path}/logs of 100%%/mine-%j.log"',
        "--open-mode=append",
        "--signal=B:USR1@300",
        "--requeue",
        "--mail-type=END",
    ]
    assert "--cpus-per-task=6 --gpus-per-task=a100:1 " in script
    assert '"OMP_NUM_THREADS": 6, ' in script


def test_two_jobs_for_one_output_have_one_name(bench: Bench, tmp_path: Path) -> None:
    first, again = (directives(slurm(bench, *GPUS))[0] for _ in range(2))
    other = directives(slurm(bench, *GPUS, "--output", str(tmp_path / "other")))[0]
    assert first == again != other
    assert re.fullmatch(r"--job-name=hmsa-manifest-[0-9a-f]{6}", first)


def test_the_commands_of_a_job_mean_the_same_from_every_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.root)
    run_option = ("--run", "dump --limit 3, ensemble --allow-missing --label max-softmax")
    words = ("--manifest", "manifest.yaml", "--output", "here", "--models", "ant,bee", *run_option)
    result = run("cluster", "slurm", *words, *CPUS, "--workers-per-node", "2")
    stages = [line for line in result.out.splitlines() if line.startswith("stage ")]
    shared = f"--manifest {bench.manifest} --output {bench.root / 'here'} --models ant,bee"
    assert stages == [
        f"stage dump {shared} --device cpu --limit 3",
        f"stage ensemble {shared} --allow-missing --label max-softmax",
    ]
    assert f"cd {bench.root} " in result.out


WRONG = {
    "--nodes 2": "--device cuda: give --gpus-per-node N",
    "--device cpu": "--device cpu: give --workers-per-node N",
    "--device cpu --gpus-per-node 2": "--gpus-per-node: belongs to --device cuda",
    "--workers-per-node 2": "--workers-per-node: belongs to --device cpu",
    "--device cuda:0": "--device cuda:0: a job runs on cuda or on cpu",
    "--gpus-per-node 4 --time soon": "--time soon: is no time limit",
    "--gpus-per-node 4 --time 5": "--time 5: leaves no time before the run is stopped",
    "--gpus-per-node 4 --memory lots": "--memory lots: is no size",
    "--gpus-per-node 4 --partition a$b": "--partition 'a$b': is no name",
    "--gpus-per-node 4 --sbatch exclusive": "--sbatch 'exclusive': is no option",
    "--gpus-per-node 4 --folder nowhere": "--folder nowhere: there is no such folder",
    "--gpus-per-node 4 --certificates nowhere": "--certificates nowhere: has no key.pem",
    "--gpus-per-node 4 --run evaluate": "--run: evaluate is no command that a job runs",
    "--gpus-per-node 4 --run predict,predicts": "--run: predict,predicts is no command",
    "--gpus-per-node 4 --run=": "--run: '' is no command",
    "--gpus-per-node 4 --run=dump|--limit|x": "--run dump: Invalid value for '--limit'",
    "--gpus-per-node 4 --run=dump|--overwrite": "--run dump: leave --overwrite out: each time",
    "--gpus-per-node 4 --run=dump|--scheduler=x": "--run dump: leave --scheduler out",
    "--gpus-per-node 4 --run=dump|--keep|ant": "--run dump: No such option: --keep",
    "--gpus-per-node 4 --run=dump|'": "--run dump ': No closing quotation",
    "--gpus-per-node 4 --setup=echo|'open": '--setup "echo \'open": ',
    "--gpus-per-node 4 --models cat": "--models: no model 'cat'",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_could_not_run_is_refused_in_one_line(bench: Bench, words: str) -> None:
    given = [word.replace("|", " ") for word in words.split()]
    result = run("cluster", "slurm", "--manifest", str(bench.manifest), *given)
    assert result.refusal().startswith(WRONG[words]) or "model" in words, result


def test_missing_inputs_are_refused_before_a_job_waits_in_the_queue(bench: Bench) -> None:
    (bench.root / "weights/ant.pth").unlink()
    assert "weights/ant.pth: there is no such checkpoint" in bench_refusal(bench)


def bench_refusal(bench: Bench) -> str:
    return run("cluster", "slurm", "--manifest", str(bench.manifest), *GPUS).refusal()


SBATCH = """#!/bin/sh
cat > {folder}/script
echo "$@" > {folder}/words
{ending}
"""


def sbatch(folder: Path, ending: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(folder=folder, ending=ending))
    (folder / "sbatch").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_job_is_submitted_and_its_number_said(bench: Bench, tmp_path: Path) -> None:
    words = ("cluster", "slurm", "--manifest", str(bench.manifest), *GPUS, "--folder", str(tmp_path))
    with mock.patch.dict(os.environ, sbatch(tmp_path / "bin", "echo '12;cluster'")):
        result = run(*words, "--job-name", "mine", "--submit")
    assert (result.code, result.out) == (0, f"submitted as job 12; it writes to {tmp_path / 'mine-12.log'}\n")
    assert (tmp_path / "bin/script").read_text() == run(*words, "--job-name", "mine").out
    assert (tmp_path / "bin/words").read_text() == "--parsable\n"


def test_what_sbatch_refuses_is_said_in_one_line(bench: Bench, tmp_path: Path) -> None:
    words = ("cluster", "slurm", "--manifest", str(bench.manifest), *GPUS, "--submit")
    wrong = "echo 'sbatch: error: invalid partition specified: gpu' >&2; echo more >&2; exit 1"
    with mock.patch.dict(os.environ, sbatch(tmp_path / "bin", wrong)):
        assert run(*words).refusal() == "--submit: sbatch: error: invalid partition specified: gpu more"
    with mock.patch.dict(os.environ, {"PATH": str(tmp_path)}):
        assert run(*words).refusal().startswith("--submit: there is no sbatch here")


def test_a_job_that_no_node_could_run_is_said_so(bench: Bench, tmp_path: Path) -> None:
    words = ("cluster", "slurm", "--manifest", str(bench.manifest), *GPUS, "--folder", str(tmp_path), "--submit")
    # What sbatch of Slurm 22.05 says.
    impossible = """\
if [ "$1" = --test-only ]; then
    echo 'allocation failure: Requested node configuration is not available' >&2; exit 1
fi
echo 12"""
    with mock.patch.dict(os.environ, sbatch(tmp_path / "bin", impossible)):
        result = run(*words)
    assert (result.code, result.out.partition(";")[0]) == (0, "submitted as job 12")
    said = "note: job 12 cannot start, says Slurm: Requested node configuration is not available; "
    assert result.err.startswith(said), result


def test_the_log_of_a_job_has_only_warnings_of_dask_unless_more_is_wanted(bench: Bench, tmp_path: Path) -> None:
    setup = ("--setup", "export DASK_LOGGING__DISTRIBUTED=info PYTHONWARNINGS=error")
    for options, wanted in (((), "warning ignore::"), (setup, "info error,ignore::")):
        script = slurm(bench, *CPUS, "--workers-per-node", "1", "--folder", str(tmp_path), *options)
        head = script.partition("\nfile=")[0] + '\necho "$DASK_LOGGING__DISTRIBUTED $PYTHONWARNINGS"\n'
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("DASK_", "PYTHONW"))}
        done = subprocess.run(["bash"], input=head, env=plain, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(wanted), done
        head += 'echo "$DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON"\n'
        done = subprocess.run(["bash"], input=head, env=plain, capture_output=True, text=True, check=True)
        for_workers = json.loads(done.stdout.splitlines()[-1])
        assert json.loads(for_workers["DASK_LOGGING"])["distributed.nanny"] == "critical"


def test_a_line_of_setup_that_fails_ends_the_job(bench: Bench, tmp_path: Path) -> None:
    setup = ("--setup", "module() { return 3; }", "--setup", "module load 'no such'", "--folder", str(tmp_path))
    script = slurm(bench, *CPUS, "--workers-per-node", "1", *setup)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: on \S+ this line of --setup fails: module load 'no such'\n", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize(("shown", "requeues"), [("2026-01-02T03:09:05", 1), ("2026-01-01T00:00:00", 0), ("None", 0)])
def test_a_job_whose_nodes_slurm_takes_back_is_requeued(
    bench: Bench, tmp_path: Path, shown: str, requeues: int
) -> None:
    """Workers that end at the start are a wrong setting, unless Slurm has ended them."""
    (tmp_path / "bin").mkdir()
    programs = {
        "srun": "exit 0",
        "scontrol": f"""\
case "$*" in
    "--oneliner show job 7") echo "JobId=7 StartTime=2026-01-02T03:04:05 PreemptTime={shown} EndTime=Unknown" ;;
    "requeue 7") touch {tmp_path}/requeued; kill -TERM $PPID ;;
esac""",
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = slurm(bench, *CPUS, "--workers-per-node", "1", "--folder", str(tmp_path))
    # The job's own PATH comes first; another run stands for the one that loses its workers.
    script = re.sub(r"^(    )\S.* \"\$@\" --scheduler .*$", r"\1sleep 100 &", script, flags=re.MULTILINE)
    script = re.sub(r"^export PATH=.*$", f"export PATH={tmp_path}/bin:$PATH", script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash"],
        input=script,
        env=os.environ | {"SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "error: all workers have ended" in done.stderr
    assert (tmp_path / "requeued").exists() == bool(requeues)
    assert done.returncode == (75 if requeues else 1), done.stderr


# ------------------------------------------------------------------ ssh

SSH = """#!/bin/bash
# Runs on this machine what would run on another, as sshd does: in a session of its own, by the user's shell.
[ "$1 $2 $3 $4 $5" = "-n -o BatchMode=yes -o ServerAliveInterval=30" ] || exit 9
echo "$6" >> {folder}/hosts
exec setsid --wait bash -c "$7" < /dev/null
"""


@pytest.mark.slow(every_change=True)
def test_ssh_brings_workers_that_end_with_the_script(bench: Bench, reference: Bench, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH.format(folder=tmp_path))
    (tmp_path / "bin/ssh").chmod(0o755)
    shared = tmp_path / "a shared folder"
    shared.mkdir()
    hosts = ("--host", "localhost", "--host", "me@second", "--workers-per-host", "1")
    words = ("cluster", "ssh", "--manifest", str(bench.manifest), *hosts, *CPUS, "--folder", str(shared))
    result = run(*words)
    assert (result.code, result.err) == (0, "")
    done = subprocess.run(
        ["bash", "-c", result.out],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert files(bench.logits) == files(reference.logits)
    assert files(bench.predictions) == files(reference.predictions)
    assert set((tmp_path / "hosts").read_text().split()) == {"me@second"}
    assert list(shared.iterdir()) == []
    assert [line for line in ps() if str(shared) in line] == []


def ps() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("host", "said"), [("-oProxy", "is no name"), ("a;b", "is no name"), ("x", "is named twice")]
)
def test_a_host_that_could_not_be_one_is_refused(bench: Bench, host: str, said: str) -> None:
    words = ("--host=x", f"--host={host}", "--gpus-per-host", "1")
    assert said in run("cluster", "ssh", "--manifest", str(bench.manifest), *words).refusal()


# ------------------------------------------------------------------ Kubernetes


def test_kubernetes_gets_a_cluster_and_a_job(bench: Bench) -> None:
    words = ("--image", "lab/hmsa:1", "--claim", "data", "--mount", str(bench.root), "--nodes", "2", *GPUS)
    result = run("cluster", "kubernetes", "--manifest", str(bench.manifest), *words, "--memory", "32Gi")
    assert (result.code, result.err) == (0, "")
    cluster, job = yaml.safe_load_all(result.out)
    assert (cluster["apiVersion"], cluster["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    worker, scheduler = cluster["spec"]["worker"], cluster["spec"]["scheduler"]
    assert worker["replicas"] == 8
    (container,) = worker["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "32Gi"}
    assert shlex.join(container["command"]).startswith("dask worker --name '$(DASK_WORKER_NAME)' --nthreads 1")
    name = cluster["metadata"]["name"]
    assert scheduler["service"]["selector"] == {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    ports = {port["name"] for port in scheduler["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in scheduler["service"]["ports"]} == ports
    (one,) = job["spec"]["template"]["spec"]["containers"]
    script = one["command"][2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"stage dump --manifest {bench.manifest} --output {bench.output} --device cuda; " in script
    assert f"tcp://{name}-scheduler:8786" in script
    for pod in (worker["spec"], scheduler["spec"], job["spec"]["template"]["spec"]):
        assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "data", "mountPath": str(bench.root)}]


def test_what_no_pod_would_see_is_refused(bench: Bench, tmp_path: Path) -> None:
    words = ("cluster", "kubernetes", "--manifest", str(bench.manifest), "--image", "a", "--claim", "b", *GPUS)
    assert f"the manifest {bench.manifest} is not below it" in run(*words, "--mount", "/nowhere").refusal()
    assert "is no absolute path" in run(*words, "--mount", "nowhere").refusal()
    assert "--image 'a b'" in run(*words, "--mount", "/", "--image", "a b").refusal()


# ------------------------------------------------------------------ certificates


def sourced(file: Path) -> dict[str, str]:
    """The variables that a file of shell sets."""
    command = ["env", "-i", "bash", "-c", f"source {shlex.quote(str(file))}; env -0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair.startswith("DASK_"))


@pytest.mark.slow(every_change=True)
def test_certificates_let_in_who_has_them_and_nobody_else(bench: Bench, reference: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "my certificates"
    result = run("cluster", "certificates", str(folder))
    assert (result.code, result.err) == (0, "")
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in ("key.pem", ".")} == {
        "key.pem": 0o600,
        ".": 0o700,
    }
    secret = sourced(folder / "environment.sh")
    (tmp_path / "cluster").mkdir()
    with mock.patch.dict(os.environ, secret):
        cluster = Cluster(tmp_path / "cluster", "--protocol", "tls")
    try:
        cluster.worker("here", **secret)
        assert '"tls://' in cluster.file.read_text()
        stranger = ended(bench.start("dump", "--scheduler", str(cluster.file)))
        assert (stranger.code, len(quiet(stranger.err))) == (2, 1), stranger
        assert f"--scheduler {cluster.file}: lets in only who has its certificates" in stranger.err
        other = run("cluster", "certificates", str(tmp_path / "other"))
        assert other.code == 0
        wrong = ended(
            bench.start("dump", "--scheduler", str(cluster.file), env=sourced(tmp_path / "other/environment.sh"))
        )
        assert (wrong.code, len(quiet(wrong.err))) == (2, 1), wrong
        assert f"--scheduler {cluster.file}: nobody answers there" in wrong.err
        result = ended(bench.start("dump", "--scheduler", str(cluster.file), env=secret))
        assert (result.code, quiet(result.err)) == (0, []), result
    finally:
        cluster.close()
    assert files(bench.logits) == files(reference.logits)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    assert run("cluster", "certificates", str(tmp_path)).code == 0
    key = (tmp_path / "key.pem").read_bytes()
    assert run("cluster", "certificates", str(tmp_path)).refusal().startswith(f"{tmp_path / 'key.pem'}: is there")
    assert (tmp_path / "key.pem").read_bytes() == key
    assert run("cluster", "certificates", "").refusal().startswith("DIR: an empty name")


def test_a_scheduler_of_another_slurm_job_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    with mock.patch.dict(os.environ, {"SLURM_JOB_ID": "4"}):
        cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.worker("here")
        where = ("--scheduler", str(cluster.file), "--dry-run")
        with mock.patch.dict(os.environ, {"SLURM_JOB_ID": "5"}):
            refused = bench.run("dump", *where)
        said = f"error: --scheduler {cluster.file}: belongs to Slurm job 4, and this is job 5"
        assert (refused.code, quiet(refused.err)[0].partition(";")[0]) == (2, said)
        for allowed in ({"SLURM_JOB_ID": "4"}, {}):
            with mock.patch.dict(os.environ, allowed):
                assert bench.run("dump", *where).code == 0
    finally:
        cluster.close()
