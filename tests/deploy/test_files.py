"""The files under deploy/ agree with each other, with the configuration's keys, and with the command line."""

from __future__ import annotations

import configparser
import ipaddress
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from router.config import load_config

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
ROUTER = DEPLOY / "compose" / "router.toml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_the_router_of_the_compose_file_accepts_its_configuration() -> None:
    """Every key is one that the daemon knows; the listeners are open inside the network, and say so."""
    config = load_config(ROUTER)
    assert config.listen.insecure
    for text in (config.listen.data, config.listen.admin, config.listen.metrics):
        assert text.startswith("0.0.0.0:")


def test_every_published_port_is_on_loopback(compose: dict[str, Any]) -> None:
    """Nothing in it has transport security or passwords."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 5
    for port in ports:
        assert port.startswith("127.0.0.1:"), port


def test_addresses_meet_across_the_files(compose: dict[str, Any]) -> None:
    """Ports and names in the compose file, the router's configuration and Prometheus' are the same ones."""
    config = load_config(ROUTER)
    ports = {
        text.rpartition(":")[2] for text in (config.listen.data, config.listen.admin, config.listen.metrics)
    }
    assert {port.rpartition(":")[2] for port in compose["services"]["router"]["ports"]} == ports
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    metrics_port = config.listen.metrics.rpartition(":")[2]
    assert scraped[0]["static_configs"][0]["targets"] == [f"router:{metrics_port}"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    mock = _options(compose["services"]["mock"]["command"])
    assert mock["register"] == f"router:{config.listen.admin.rpartition(':')[2]}"
    assert mock["advertise"].rpartition(":")[2] == mock["listen"].rpartition(":")[2]


def test_the_mock_fleet_may_register_from_the_compose_network(compose: dict[str, Any]) -> None:
    """The subnet stands in three places; they are one."""
    (network,) = compose["networks"]["fleet"]["ipam"]["config"]
    subnet = ipaddress.ip_network(network["subnet"])
    allowed = [ipaddress.ip_network(text) for text in load_config(ROUTER).registration.allowed_networks]
    assert allowed == [subnet]
    assert ipaddress.ip_network(_options(compose["services"]["mock"]["command"])["allow"]) == subnet


def test_commands_of_containers_and_service_are_ones_the_program_has(compose: dict[str, Any]) -> None:
    """Each option stands in the command's own help."""
    unit = _unit()
    lines = [compose["services"][name]["command"] for name in ("router", "mock")]
    lines += [unit["ExecStart"].split()[1:], unit["ExecStartPre"].split()[1:]]
    for command, *arguments in lines:
        text = _help(command)
        for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
            assert option in text, f"polyphase {command} has no {option}"


def test_files_that_are_mounted_exist(compose: dict[str, Any]) -> None:
    """Docker would make a missing one an empty directory, and the service would fail in a puzzling way."""
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / "dashboards" / Path(home).name).exists()


def test_services_stop_later_than_the_router_drains(compose: dict[str, Any]) -> None:
    """Or running requests would be cut off by the one who waits for them."""
    grace_s = load_config(ROUTER).drain.grace_s
    assert float(compose["services"]["router"]["stop_grace_period"].removesuffix("s")) > grace_s
    assert float(_unit()["TimeoutStopSec"]) > grace_s


def test_the_image_holds_what_the_package_needs() -> None:
    """Each COPY source exists and is let through by the ignore file; the user is not root."""
    text = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for source in line.split()[:-1]
    ]
    assert "pyproject.toml" in copied
    for source in copied:
        assert f"!{source}" in ignored, source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]["packages"]
    assert {package.partition("/")[0] for package in packages} <= set(copied)
    assert re.findall(r"^USER (.*)$", text, re.M) == ["10001"]
    assert text.rstrip().splitlines()[-2:] == [
        'ENTRYPOINT ["polyphase"]',
        'CMD ["serve", "--config", "/etc/polyphase/polyphase.toml"]',
    ]


def test_what_the_image_copies_is_in_the_tree() -> None:
    """The sample configuration and policies are part of the image."""
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_the_service_is_hardened_and_reloads() -> None:
    """What a review would look for first."""
    unit = _unit()
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["DynamicUser"] == "yes"
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["Type"] == "exec"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    """With programs that exist on this machine in place of the installed ones."""
    unit = (DEPLOY / "systemd" / "polyphase.service").read_text()
    file = tmp_path / "polyphase.service"
    file.write_text(unit.replace("/opt/polyphase/bin/polyphase", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "polyphase.service" not in done.stderr, done.stderr


def _unit() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "polyphase.service")
    return dict(parser["Service"])


def _options(command: list[str]) -> dict[str, str]:
    return {name[2:]: value for name, _, value in (word.partition("=") for word in command if "=" in word)}


def _help(command: str) -> str:
    from router.cli.main import cli

    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0, done.output
    return done.output
