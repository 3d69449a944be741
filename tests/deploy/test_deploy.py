"""What deploy/ ships is what its schemas, systemd and the collector's own configuration accept; nobody ran a container."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_lightning.app.config import load_config, parse_config
from otel_lightning.collector.config import CollectConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_collectors_settings_are_ones_it_knows() -> None:
    assert load_config(CollectConfig, DEPLOY / "collect.yaml").log == "json"
    (config,) = [item["data"]["collect.yaml"] for item in documents("kubernetes.yaml") if item["kind"] == "ConfigMap"]
    parse_config(CollectConfig, yaml.safe_load(config), "kubernetes.yaml")


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yaml", "kubernetes.yaml"])
def test_what_was_not_run_says_so_in_its_header(name: str) -> None:
    header = "".join(line for line in (DEPLOY / name).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "not run here" in header.lower()
    assert f"| `{name}` |" in (DEPLOY / "README.md").read_text()


def test_nothing_listens_beyond_loopback_by_default() -> None:
    for path in DEPLOY.iterdir():
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in lines if "0.0.0.0" in line or "insecure" in line], path.name


def test_systemd_accepts_the_unit_and_its_command_runs(tmp_path: Path, start: Any) -> None:
    unit = (DEPLOY / "lightning-collect.service").read_text()
    (command,) = [line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart=")]
    program, *arguments = shlex.split(command)
    arguments = [
        str(DEPLOY / "collect.yaml")
        if argument.endswith(".yaml")
        else str(tmp_path / "lake")
        if argument.startswith("/var")
        else argument
        for argument in arguments
    ]
    collector = start(Path(program).name, *arguments, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    assert collector.stop() == 0
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    here = tmp_path / "lightning-collect.service"
    here.write_text(unit.replace(program, str(Path(sys.executable).parent / "lightning-collect")))
    done = subprocess.run([analyze, "verify", "--man=no", str(here)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "lightning-collect" in line]
    assert done.returncode == 0 and complaints == [], done.stderr


def dockerfile() -> dict[str, list[str]]:
    """The Dockerfile's instructions, continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word.isupper():
            found.setdefault(word, []).append(rest.strip())
    return found


@pytest.mark.slow
def test_the_dockerfiles_lines_work_in_an_empty_environment(tmp_path: Path) -> None:
    source, environment = tmp_path / "src", tmp_path / "env"
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(*(name.removeprefix("**/") for name in ignored)), symlinks=True
    )
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    lines = dockerfile()
    (install,) = [line for line in lines["RUN"] if line.startswith("pip install")]
    subprocess.run([environment / "bin" / "pip", *shlex.split(install)[1:], "--quiet"], cwd=source, check=True)
    entry = json.loads(lines["ENTRYPOINT"][0])
    variables = dict(item.split("=") for line in lines["ENV"] for item in line.split())
    variables["LIGHTNING_COLLECT_LAKE"] = str(tmp_path / "lake")
    process = subprocess.Popen(
        [str(environment / "bin" / entry[0]), *entry[1:], "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        env={"PATH": "/usr/bin:/bin", **variables}, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    (health,) = lines["HEALTHCHECK"]
    check = json.loads(health[health.index("[") :])
    code = check[2].replace("http://127.0.0.1:4318", url)
    assert subprocess.run([environment / "bin" / "python", "-c", code]).returncode == 0
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stored 0 spans" in out
    done = subprocess.run(
        [environment / "bin" / entry[0], "check"], env={"PATH": "/usr/bin:/bin", **variables}, cwd=tmp_path
    )
    assert done.returncode == 0


VALIDATE_KUBERNETES = """
import sys, yaml, kubernetes_validate
for document in yaml.safe_load_all(open(sys.argv[1])):
    kubernetes_validate.validate(document, sys.argv[2], strict=True)
    print(document["kind"])
"""
VALIDATE_COMPOSE = """
import sys, yaml, compose_spec
text = open(sys.argv[1]).read()
services = yaml.safe_load(text)["services"]
known = compose_spec.ComposeSpecification.model_validate(yaml.safe_load(text)).services
for name, service in services.items():
    unknown = service.keys() - known[name].model_dump(exclude_unset=True, by_alias=True).keys()
    assert not unknown, (name, unknown)
parsed = compose_spec.PyCompose.from_yaml(text)
parsed.validate_volumes()
print(*sorted(parsed.service_names() if callable(parsed.service_names) else parsed.service_names))
"""


@pytest.mark.slow
def test_kubernetes_and_compose_files_fit_their_schemas(tmp_path: Path) -> None:
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = environment / "bin" / "pip"
    subprocess.run([pip, "install", "--quiet", "kubernetes-validate>=1.31,<2", "compose-spec>=0.2,<0.3"], check=True)
    python = environment / "bin" / "python"
    done = subprocess.run(
        [python, "-c", VALIDATE_KUBERNETES, str(DEPLOY / "kubernetes.yaml"), "1.31"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["ConfigMap", "PersistentVolumeClaim", "Deployment", "CronJob"], done.stderr
    done = subprocess.run(
        [python, "-c", VALIDATE_COMPOSE, str(DEPLOY / "docker-compose.yaml")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["agent", "collector"], done.stderr
