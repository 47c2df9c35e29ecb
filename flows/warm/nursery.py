"""The worker's side: keeps a mother ready, and another when the first is stale or dead."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from flows.warm.mother import PATIENCE, READY, ROOT, STALE

TRIES = 3  # mothers that die while they load, one after another, until the worker goes on without
LOG = logging.getLogger("redoubt")


class Nursery:
    """A socket at which a mother answers launchers; open() and close() it.

    It holds on to the socket from mother to mother, so who asks between two of them waits a moment.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.folder = Path(tempfile.mkdtemp(prefix="redoubt-worker-"))  # which only this user may enter
        self.path = self.folder / "mother"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.mothers: list[subprocess.Popen[bytes]] = []
        self.worker: socket.socket | None = None  # its closing tells the mother that the worker is gone
        self.closing = threading.Event()
        self.keeper = threading.Thread(target=self._keep, name="redoubt-nursery", daemon=True)

    @property
    def command(self) -> list[str]:
        """What is to be started for a run."""
        launch = Path(__file__).with_name("launch.py")
        return [sys.executable, "-I", "-S", str(launch), str(self.path)]

    def open(self) -> "Nursery":
        """Begin to load; launchers may connect from now on."""
        self.listening.bind(str(self.path))
        self.listening.listen(128)
        self.keeper.start()
        return self

    def close(self) -> None:
        """End everything, the runs too: they are asked to, then killed."""
        self.closing.set()
        if self.worker is not None:
            with suppress(OSError):
                self.worker.shutdown(socket.SHUT_RDWR)
        self.keeper.join(PATIENCE)
        self._give_up()
        for mother in self.mothers:
            with suppress(subprocess.TimeoutExpired):
                mother.wait(PATIENCE + 2)
            with suppress(ProcessLookupError):
                os.killpg(mother.pid, signal.SIGKILL)
            mother.wait()

    def _keep(self) -> None:
        failed = 0
        while not self.closing.is_set() and failed < TRIES:
            failed = 0 if self._one() else failed + 1
            self.closing.wait(2.0 * failed)  # the code may be half written
        if failed and not self.closing.is_set():
            LOG.error(
                "the process that others are forked from died %d times while it loaded; its last words stand above. "
                "Each run now loads everything itself.",
                failed,
            )
            self._give_up()

    def _one(self) -> bool:
        """Start a mother, wait until she makes way or dies; whether she was ready at all."""
        mine, hers = socket.socketpair()
        self.worker = mine
        with hers:
            self.mothers = [mother for mother in self.mothers if mother.poll() is None]
            words = [str(self.listening.fileno()), str(hers.fileno())]
            mother = subprocess.Popen(
                [sys.executable, "-m", "flows.warm.mother", *words],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=(self.listening.fileno(), hers.fileno()),
                start_new_session=True,  # Ctrl-C is for the worker
            )
            self.mothers.append(mother)
        ready = False
        with mine:
            while told := mine.recv(1):
                ready = ready or told == READY
                if told == STALE:
                    LOG.info("Redoubt's code has changed: it is loaded anew.")
                    break
        return ready

    def _give_up(self) -> None:
        self.listening.close()
        shutil.rmtree(self.folder, ignore_errors=True)
