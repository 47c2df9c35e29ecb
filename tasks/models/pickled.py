"""Models that are pickles: refused, unless the very bytes were consented to; then loaded once, elsewhere, as a graph.

Loading a pickle runs whatever its author has put into it. Nothing here makes that safe: it is done in a process of its
own that holds no credentials and whose only answer is a file that our own reader takes, as it would take a stranger's.
"""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tasks.errors import ModelRejected, WrongInput

CONSENT = "REDOUBT_CONSENT"  # SHA-256 digests, with commas: sha256:<64 hex digits>
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
PATIENCE = 300.0  # seconds for loading and exporting
LARGEST = 8 * 2**30  # bytes of the graph that comes back
HANDED_ON = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")  # all of the environment that it sees


def consents(words: Sequence[str] = ()) -> frozenset[str]:
    """The digests that the user has consented to, in a command's words and in REDOUBT_CONSENT. Raises WrongInput."""
    given = [word.strip().lower() for text in (*words, os.environ.get(CONSENT, "")) for word in text.split(",")]
    for word in given:
        if word and not DIGEST.fullmatch(word):
            raise WrongInput(
                f"consent {word[:80]!r}: write sha256: and the 64 hex digits of the file's SHA-256. There is no "
                "consent to everything."
            )
    return frozenset(word for word in given if word)


def consented(raw: bytes, where: str, instead: str) -> str:
    """The digest of a pickle's bytes, if the user has consented to it. Raises ModelRejected, which names the digest."""
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if digest not in consents():
        raise ModelRejected(
            f"{where} is a pickle, and loading a pickle runs whatever it holds. {instead} If you know who made this "
            f"very file, consent to it: --consent {digest} (or {CONSENT}). It is then loaded once, in a process "
            "without your credentials but with your rights, and only the graph that comes out of it is used."
        )
    return digest


def graph_of(raw: bytes, where: str, shape: Sequence[int]) -> bytes:
    """The network in a pickle's bytes as an archive of torch.export, made in a process of its own.

    shape: of one sample. Call consented() first. Raises ModelRejected with the reason where no graph comes of it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model.pt2"
        paths = [os.getcwd(), *(path for path in sys.path if path)]
        seen = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        seen |= {"HOME": scratch, "TMPDIR": scratch, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.models.pickled", str(made), ",".join(map(str, shape))],
            env=seen,
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(raw, timeout=PATIENCE)
            last = (said.decode(errors="replace").strip().splitlines() or ["no reason was given"])[-1]
        except subprocess.TimeoutExpired:
            last = f"it took more than {PATIENCE:g} s"
        finally:
            _end(process)
        if process.returncode != 0 or made.is_symlink() or not made.is_file() or made.stat().st_size > LARGEST:
            raise ModelRejected(f"{where} was consented to, but no graph comes of it: {last[:300]!a}.")
        return made.read_bytes()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process with all that it started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _export(raw: bytes, into: Path, shape: Sequence[int]) -> None:
    """What the other process does. The only call in Redoubt that unpickles what others made."""
    import torch

    model = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=False)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"it holds a {type(model).__name__}, not a network: weights alone say nothing of their code")
    example = torch.zeros(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        made.example_inputs = None  # torch would write them as a pickle
        torch.export.save(made, into)


if __name__ == "__main__":
    _export(sys.stdin.buffer.read(), Path(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")])
