"""infra/compose.yaml and infra/Dockerfile, held against what no container engine is needed for."""

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.services.installation import COMPOSE, ROOT, Refused, composed, interpolated

EXAMPLE = ROOT / "infra" / "env.example"
GIVEN = {
    line.partition("=")[0]: f"given-{number}"
    for number, line in enumerate(EXAMPLE.read_text().splitlines())
    if line and not line.startswith("#")
}
SERVICES = composed()["services"]
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
EXACT = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)*(@sha256:[0-9a-f]{64})?")
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY")


@pytest.mark.parametrize("name", GIVEN)
def test_nothing_starts_without_each_secret_and_the_refusal_names_it(name):
    composed(GIVEN)
    for value in ("", None):
        given = {key: text for key, text in GIVEN.items() if key != name} | ({} if value is None else {name: value})
        with pytest.raises(Refused, match=rf"{name}: write {name} into infra/\.env"):
            composed(given)


def test_every_variable_of_the_file_is_in_the_example_and_has_no_default():
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert used == set(GIVEN)
    assert not re.search(r"\$\{\w+(?!\w|:\?)", COMPOSE.read_text())


def test_the_example_holds_no_value_and_says_how_to_make_each():
    lines = EXAMPLE.read_text().splitlines()
    assert all(line.startswith("#") or not line or line.endswith("=") for line in lines)
    assert lines.count("") >= 6
    assert "openssl rand -hex 32" in EXAMPLE.read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_secret_is_never_written_down(name):
    settings = SERVICES[name].get("environment", {})
    literal = {key: value for key, value in settings.items() if SECRET.search(key) and not str(value).startswith("${")}
    assert literal == {}
    assert not any(SECRET.search(str(word)) for word in SERVICES[name].get("command", []))


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_pinned_and_has_no_more_rights_than_it_needs(name):
    service = SERVICES[name]
    assert EXACT.fullmatch(service["image"]), service["image"]
    assert service["user"] not in ("", "root", "0", "0:0")
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"] is True
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service)
    assert service.get("network_mode", "none") == "none"
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_this_machine(name):
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in SERVICES[name].get("ports", []))


def test_what_lasts_is_watched_and_comes_back_and_what_is_waited_for_says_when_it_is_ready():
    assert set(LASTING) == {"postgres", "s3", "mlflow", "prefect", "worker"}
    for name, service in LASTING.items():
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD", name
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_healthy" if other in LASTING else "service_completed_successfully"
            assert how["condition"] == wanted, other


def test_only_mlflow_and_prefect_reach_the_stores():
    networks = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    assert composed()["networks"]["stores"] == {"internal": True}
    assert {name for name, among in networks.items() if "stores" in among} == {
        *("postgres", "s3", "bucket", "mlflow-tables", "mlflow", "prefect")
    }
    assert networks["worker"] == {"servers"}


def test_every_file_that_is_named_is_there_and_every_volume_and_service():
    whole = composed()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            if source.startswith("./"):
                assert (COMPOSE.parent / source).is_file()
            elif not source.startswith("${"):
                assert source in whole["volumes"]
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service.get("networks", [])) <= set(whole["networks"])
        words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        words += [value for value in service.get("environment", {}).values() if isinstance(value, str)]
        for word in words:
            assert not str(word).startswith("infra/") or (ROOT / word).is_file(), word


def test_telemetry_is_off_in_every_container_of_ours():
    said = (ROOT / "infra" / "Dockerfile").read_text()
    for setting in ("DO_NOT_TRACK=true", "MLFLOW_DISABLE_TELEMETRY=true", "PREFECT_SERVER_ANALYTICS_ENABLED=false"):
        assert setting in said


def test_the_image_is_pinned_small_and_not_root():
    said = (ROOT / "infra" / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", said, re.M)
    assert bases == ["${PYTHON}"] * 2  # two stages; the pin is the argument before them
    assert EXACT.fullmatch(re.findall(r"^ARG PYTHON=(\S+)$", said, re.M)[0])
    assert re.findall(r"^USER (\S+)", said, re.M) == ["10001:10001"]
    assert "infra/constraints.txt" in said
    assert "HEALTHCHECK" in said
    assert not re.search(r"^(ARG|ENV).*(PASSWORD|SECRET|TOKEN)", said, re.M)
    for line in re.findall(r"pip install .*", said):
        assert "--constraint infra/constraints.txt" in line or "--no-deps" in line or "uv==" in line, line


def test_every_extra_that_an_image_may_have_is_in_the_tested_set():
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "infra" / "constraints.txt").read_text(), re.M))
    wanted = [*said["dependencies"], *(each for extra in said["optional-dependencies"].values() for each in extra)]
    names = {re.split(r"[\[<>=; ]", each)[0].lower() for each in wanted} - {"redoubt"}
    assert names <= {name.lower() for name in pinned}


def test_the_builder_is_sent_no_secret_and_no_store():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "infra/.env" in rules[rules.index("!infra") :]
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "infra" / "Dockerfile").read_text(), re.M))
    assert {Path(word).parts[0] for words in copied for word in words.split()} == kept
    ignored = subprocess.run(["git", "check-ignore", "infra/.env"], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.strip() == "infra/.env"


def test_interpolation_is_that_of_compose():
    assert interpolated({"a": ["${A:?x}-$${B}", 3]}, {"A": "1"}) == {"a": ["1-${B}", 3]}
    assert interpolated("${A:-d}", {"A": ""}) == "d"
    with pytest.raises(Refused, match="A: say"):
        interpolated("${A:?say}", {"A": ""})


def test_the_auth_app_has_no_password_in_its_file_and_shows_nothing_to_whoever_has_no_right():
    said = (ROOT / "infra" / "basic_auth.ini").read_text()
    assert "admin_password" not in said
    assert re.search(r"^default_permission = NO_PERMISSIONS$", said, re.M)
    assert re.search(r"^database_uri = postgresql:///mlflow_auth$", said, re.M)
    mode = stat.S_IMODE((ROOT / "infra" / "databases.sh").stat().st_mode)
    assert mode & 0o004  # PostgreSQL's user reads it in the container


ENGINE = """#!/bin/sh
echo "$@" >> "$HOME/asked"
[ "$1" != version ] || exit 0
while [ "$1" != --env-file ]; do shift; done
case $3 in
  config) cp "$2" "$HOME/less"; [ -n "$STARTS" ] || { echo "write S3_SECRET_KEY into infra/.env"; exit 1; } ;;
  up) cp "$2" "$HOME/env"; exit 7 ;;
esac
"""


@pytest.mark.parametrize("starts", [False, True], ids=["refuses", "starts without a secret"])
def test_the_trial_gives_every_value_and_takes_everything_down_where_the_engine_fails(tmp_path, starts):
    engine = tmp_path / "engine"
    engine.write_text(ENGINE)
    engine.chmod(0o700)
    given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "COMPOSE": str(engine)}
    tried = subprocess.run(
        ["sh", str(ROOT / "infra" / "containers")],
        env=given | {"STARTS": "yes" if starts else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    less = dict(line.split("=", 1) for line in (tmp_path / "less").read_text().splitlines())
    assert set(GIVEN) - set(less) == {"S3_SECRET_KEY"}
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "down --volumes" in asked[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "asked", "less"} | (
        {"env"} if not starts else set()
    )
    if starts:
        assert (tried.returncode, tried.stderr) == (1, "it started without S3_SECRET_KEY\n")
    else:
        made = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
        assert tried.returncode == 7
        composed(made)
        secrets = [value for name, value in made.items() if name != "REDOUBT_DATA"]
        assert len(set(secrets)) == len(secrets)
        assert min(map(len, secrets)) >= 48
        assert not [value for value in secrets if value in tried.stdout + tried.stderr]


def test_without_an_engine_the_trial_says_what_is_missing():
    tried = subprocess.run(
        ["sh", str(ROOT / "infra" / "containers")],
        env={"PATH": os.environ["PATH"], "COMPOSE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 3
    assert "No container engine answers to 'false'" in tried.stderr
