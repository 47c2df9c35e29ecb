"""What is said to Prefect and MLflow before they are imported."""

import os
import ssl

import pytest

from flows.settle import settle

NAME = "PREFECT_API_SSL_CERT_FILE"


@pytest.fixture(autouse=True)
def unsaid(home, monkeypatch):
    """The environment as it is set back afterwards, and nothing said yet of authorities."""
    for name in list(os.environ):
        monkeypatch.setenv(name, os.environ[name])
    for name in (NAME, "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop(NAME, None)


def test_a_server_without_tls_gets_one_authority_that_is_trusted_anyway(monkeypatch):
    import certifi

    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    settle()
    one, every = (ssl.create_default_context(cafile=path) for path in (os.environ[NAME], certifi.where()))
    (name,) = one.get_ca_certs()
    assert name in every.get_ca_certs()
    assert one.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "said", [{"PREFECT_API_URL": "https://prefect:4200/api"}, {}], ids=["with TLS", "a server of its own"]
)
def test_any_other_server_is_asked_with_all_authorities(said, monkeypatch):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    settle()
    assert NAME not in os.environ


def test_authorities_that_are_named_for_prefect_win(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    monkeypatch.setenv(NAME, "/etc/ours.pem")
    settle()
    assert os.environ[NAME] == "/etc/ours.pem"
    monkeypatch.delenv(NAME)
