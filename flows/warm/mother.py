"""The process that has loaded everything and runs nothing: it forks one process for each run that is asked for."""

import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import sysconfig
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from flows.warm.launch import TAKEN
from tasks.errors import RedoubtError
from tasks.evidence.page import template
from tasks.posture.ink import inked, to_svg
from tasks.track import build_ahead, environment

ROOT = Path(__file__).parents[2]
READY, STALE = b"r", b"s"  # what the worker is told
PATIENCE = 10.0  # seconds that a launcher has to say what it wants, and a run to end once it is asked to
FLOWS = ("flows.pipeline", "flows.evaluate", "flows.reattack")
LATER = (  # what an evaluation loads only when it comes to it
    *("prefect.engine", "prefect.flow_engine", "prefect.task_engine", "prefect.concurrency._sync"),
    *("mlflow", "mlflow.store.artifact.local_artifact_repo", "mlflow.store.artifact.mlflow_artifacts_repo"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("great_expectations", "great_expectations.expectations.core", "sklearn.datasets", "pyarrow.pandas_compat"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg"),
    *("graphviz", "mlflow.tracking.request_header.registry", "netrc", "pyarrow.vendored.version"),
    *("prefect.concurrency.sync", "prefect.utilities.visualization", "anyio._backends._asyncio"),
    *("prefect.deployments.steps", "prefect.runner"),
)
PAGES = ("report.html.jinja", "soundness.html.jinja", "validation.html.jinja")


@dataclass(frozen=True)
class Request:
    """What a run is to find: its environment, its working folder, and where its output goes."""

    env: dict[str, str]
    cwd: str
    output: list[int]  # descriptors of standard output and error


@dataclass
class Child:
    """A run's process, and the launcher that stands for it."""

    pid: int
    launcher: socket.socket
    kill_at: float | None = None  # set when it was told to end: the time.monotonic() at which it is killed


def main() -> None:
    """Load, then serve; a forked process leaves serve() and becomes the run."""
    listening, worker = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    before = fingerprint()
    load()
    request = Mother(listening, worker, before).serve()
    if request is not None:
        become(request)


def fingerprint() -> int:
    """A number that changes when a file of Redoubt's code does, or what is installed."""
    files = [path for top in ("flows", "tasks") for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".jinja")]
    places = [*sorted(files), Path(sysconfig.get_path("purelib"))]
    return hash(tuple(_stamp(path) for path in places))


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:  # it went while we looked
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size


def load() -> None:
    """Import whatever an evaluation needs. Raises RedoubtError where that left threads, which do not survive a fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (*FLOWS, *LATER):
            import_module(name)
    for page in PAGES:
        template(page)
    _draw()
    _build()
    environment()
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise RedoubtError(f"loading started the threads {', '.join(others)}; a process that has some is not forked.")
    gc.collect()
    gc.freeze()  # else the first collection in each child writes to, and so copies, every page


def _draw() -> None:
    """Draw a little, so that fonts and image formats are found before anybody draws."""
    from matplotlib.figure import Figure

    with inked():
        figure = Figure()
        figure.add_subplot().plot([0, 1], label="0.1%")
        to_svg(figure, "warm-")


def _build() -> None:
    """Build what is built when it is first used: Prefect's models, and what finds image formats and MLflow's stores."""
    from PIL import Image
    from pydantic import BaseModel

    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if model.__module__.startswith("prefect.") and not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)
    Image.preinit()
    build_ahead()


class Mother:
    """Forks for launchers that connect to `listening`; tells `worker` when it is ready, and when its code is stale."""

    def __init__(self, listening: socket.socket, worker: socket.socket, loaded: int) -> None:
        self.listening, self.worker, self.loaded = listening, worker, loaded
        self.children: dict[int, Child] = {}
        self.selector = selectors.PollSelector()  # a fork shares no state of the kernel's with it
        self.taking = True

    def serve(self) -> Request | None:
        """What a fork is to become, in that fork; None in the mother, when she is done."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # she ends when the worker does, after her children
        ended, wake = os.pipe()
        os.set_blocking(ended, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.listening.setblocking(False)
        for place in (self.listening, self.worker, ended):
            self.selector.register(place, selectors.EVENT_READ)
        try:
            self.worker.sendall(READY)
        except OSError:  # the worker has ended while she was loading
            return None
        while self.taking or self.children:
            for key, _ in self.selector.select(self._timeout()):
                if key.fileobj is self.listening and self.taking:
                    request = self._taken()
                    if request is not None:
                        return request
                elif key.fileobj is self.worker:
                    self._stop_taking()
                elif key.fileobj == ended:
                    with suppress(BlockingIOError):
                        os.read(ended, 4096)
                elif isinstance(key.data, Child):
                    self._heard(key.data)
            self._reap()
        return None

    def _taken(self) -> Request | None:
        """Fork for the launcher that waits; what the fork is to become, in the fork alone."""
        if fingerprint() != self.loaded:
            self._stop_taking()
            with suppress(OSError):
                self.worker.sendall(STALE)
            return None
        try:
            launcher, _ = self.listening.accept()
        except BlockingIOError:  # another took it
            return None
        request = _asked(launcher)
        if request is None:
            launcher.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._leave(launcher)
            return request
        for descriptor in request.output:
            os.close(descriptor)
        self.children[pid] = child = Child(pid, launcher)
        self.selector.register(launcher, selectors.EVENT_READ, child)
        with suppress(OSError):
            launcher.sendall(TAKEN)
        return None

    def _leave(self, launcher: socket.socket) -> None:
        """Drop in a fork what is the mother's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for key in list(self.selector.get_map().values()):
            os.close(key.fd)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.detach()
        launcher.close()

    def _stop_taking(self) -> None:
        """Let others answer those who ask; the runs under way go on."""
        self.taking = False
        for place in (self.listening, self.worker):
            with suppress(KeyError):
                self.selector.unregister(place)

    def _heard(self, child: Child) -> None:
        """Pass a signal on; end the run where its launcher has gone."""
        try:
            told = child.launcher.recv(1)
        except OSError:
            told = b""
        if told:
            os.kill(child.pid, told[0])
        else:
            self.selector.unregister(child.launcher)
            os.kill(child.pid, signal.SIGTERM)
            child.kill_at = time.monotonic() + PATIENCE

    def _reap(self) -> None:
        for child in list(self.children.values()):
            if child.kill_at is not None and time.monotonic() >= child.kill_at:
                os.kill(child.pid, signal.SIGKILL)
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            del self.children[pid]
            with suppress(KeyError, ValueError):
                self.selector.unregister(child.launcher)
            with suppress(OSError):
                child.launcher.sendall(struct.pack("!i", status))
            child.launcher.close()

    def _timeout(self) -> float | None:
        """Seconds until the next child has to be killed; None where none has."""
        at = [child.kill_at for child in self.children.values() if child.kill_at is not None]
        return max(0.0, min(at) - time.monotonic()) + 0.01 if at else None


def become(request: Request) -> None:
    """Be the run: what `python -m prefect.engine` is in a new process with this environment in this folder."""
    import numpy as np

    for place, descriptor in enumerate(request.output, 1):
        os.dup2(descriptor, place)
        os.close(descriptor)
    _end_with_mother()
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)
    sys.path[0], sys.argv = request.cwd, ["prefect.engine"]
    np.random.seed()  # a new process has another one each time, so no two forks may share it
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # that it is loaded already is the point
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _asked(launcher: socket.socket) -> Request | None:
    """What the launcher wants; None where it has gone again."""
    launcher.settimeout(PATIENCE)
    output: list[int] = []
    try:
        size, output, _, _ = socket.recv_fds(launcher, 4, 2)
        raw = launcher.recv(struct.unpack("!I", size)[0], socket.MSG_WAITALL)
        asked = json.loads(raw)
        launcher.settimeout(None)
        return Request(asked["env"], asked["cwd"], list(output))
    except (OSError, ValueError, KeyError, struct.error):
        for descriptor in output:
            os.close(descriptor)
        return None


def _end_with_mother() -> None:
    """Ask Linux for SIGTERM when the mother dies: nobody would be left to say how the run ended."""
    set_death_signal = 1  # PR_SET_PDEATHSIG in sys/prctl.h
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
