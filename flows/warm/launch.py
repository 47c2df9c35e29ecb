"""What Prefect starts for a run: asks the mother for a warm process, and stands in for it until it ends.

Started by its path, without site-packages: it has to be there in milliseconds. It ends as the run's process ends, with
its exit code or by the same signal. Where no mother answers it becomes the process that Prefect would have started.
"""

import json
import os
import signal
import socket
import struct
import sys
from typing import NoReturn

TAKEN = b"f"  # what the mother says when she has forked
LOST = 70  # exit code where the mother has gone under way, and the run with her
FORWARDED = (signal.SIGTERM, signal.SIGINT)


def main() -> NoReturn:
    """Get the process, pass signals on to it, end as it ends."""
    mother = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mother.connect(sys.argv[1])
        asked = json.dumps({"env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(mother, [struct.pack("!I", len(asked))], [1, 2])
        mother.sendall(asked)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: mother.sendall(bytes([number])))
        taken = mother.recv(1)  # while she loads this waits
    except OSError:
        taken = b""
    if taken != TAKEN:
        os.execv(sys.executable, [sys.executable, "-m", "prefect.engine"])
    try:
        answer = mother.recv(4, socket.MSG_WAITALL)
    except OSError:
        answer = b""
    if len(answer) < 4:
        sys.stderr.write("the warm process that this run was forked from has ended\n")
        sys.exit(LOST)
    code = os.waitstatus_to_exitcode(struct.unpack("!i", answer)[0])
    if code < 0:
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
