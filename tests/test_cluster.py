"""The jobs under examples/cluster: shell that is sound, and Kubernetes objects whose parts fit together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "examples/cluster"
SLURM, KUBERNETES = (sorted(FOLDER.glob(pattern)) for pattern in ("*.slurm", "*.yaml"))


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    checks = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    for check in checks:
        done = subprocess.run([*check, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "set -euo pipefail" in path.read_text() and "SAUKIT_WORKSPACE:?" in path.read_text()


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_a_job_fits_together(path: Path) -> None:
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text()))
    (job,) = (each for each in objects if each["kind"] == "Job")
    assert job["apiVersion"] == "batch/v1"
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"name": "SAUKIT_WORKSPACE", "value": "/work"} in container["env"]
        command = " ".join(container["args"])
        if nodes := re.search(r"--nnodes (\d+) --nproc-per-node (\d+)", command):
            assert spec["completions"] == spec["parallelism"] == int(nodes[1])
            assert container["resources"]["limits"]["nvidia.com/gpu"] == int(nodes[2])
            # The first pod's name, which a service without an address gives it.
            (service,) = (each for each in objects if each["kind"] == "Service")
            name = job["metadata"]["name"]
            assert f"--rdzv-endpoint {name}-0.{pod['subdomain']}:" in command
            assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
            assert service["spec"]["selector"] == {"job-name": name}
        if "saukit compare" in command:  # pods that have none left to train end until the last one is trained
            assert spec["backoffLimit"] >= 100
        if "JOB_COMPLETION_INDEX" in command:
            assert spec["completionMode"] == "Indexed" and f"/{spec['completions']}" in command
