"""MLflow's and Prefect's pages on the embedded stores."""

import os
import socket
import subprocess
import sys
import time

import click

from tasks.errors import WrongInput
from tasks.track import embedded_store


def show_pages(*, mlflow_port: int, prefect_port: int) -> None:
    """Start both servers on this machine only, say where they are, and end them on Ctrl-C. Raises WrongInput."""
    for port in (mlflow_port, prefect_port):
        _free(port)
    store = os.environ.get("MLFLOW_TRACKING_URI") or embedded_store()
    environment = os.environ | {
        "PREFECT_SERVER_UI_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{prefect_port}/api",  # the page asks port 4200 otherwise
    }
    commands = {
        f"MLflow   http://127.0.0.1:{mlflow_port}": [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store),
            *("--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"),
        ],
        f"Prefect  http://127.0.0.1:{prefect_port}": [
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", "127.0.0.1", "--port", str(prefect_port)),
        ],
    }
    servers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands.values()
    ]
    click.echo("Starting both; the first time takes half a minute. Ctrl-C ends them.")
    try:
        for place, server, port in zip(commands, servers, (mlflow_port, prefect_port), strict=True):
            while server.poll() is None and not _answers(port):
                time.sleep(0.2)
            click.echo(place)
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        raise WrongInput("one of the two servers ended by itself. Try other ports: --mlflow-port, --prefect-port.")
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(20)


def _free(port: int) -> None:
    if _answers(port):
        raise WrongInput(f"port {port} is taken. Name another: --mlflow-port or --prefect-port.")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
