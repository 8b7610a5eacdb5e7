"""A Watchword server as a child process of a test."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

READY = re.compile(r"\bready\b.*\bgrpc=(\S+)")


def binary():
    """Return the path of the program to test. A skipped test would look like a passed test."""
    path = os.environ.get("WATCHWORD_BIN")
    if not path:
        raise RuntimeError("WATCHWORD_BIN is not set: set it to the path of the program to test, see README.md")
    return os.path.abspath(path)


def _end_with_the_test():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also after kill -9 of the test


class Server:
    """A server on a free port, with an empty database. address is its gRPC address."""

    def __init__(self, *flags):
        self._dir = tempfile.TemporaryDirectory(prefix="watchword-python-")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WATCHWORD_")}
        self._process = subprocess.Popen(
            [binary(), "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", *flags],
            cwd=self._dir.name, env=environment, text=True, preexec_fn=_end_with_the_test,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.log = ""
        for line in self._process.stderr:  # ends when the server ends
            self.log += line
            if match := READY.search(line):
                self.address = match.group(1)
                break
        else:
            raise RuntimeError(f"the server ended before it was ready:\n{self.log}")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.admin_password = self._process.stdout.readline().strip()

    def _read(self):
        for line in self._process.stderr:
            self.log += line

    def stop(self):
        """Stop the server, and return its exit status."""
        self._process.terminate()
        self._process.stdout.read()
        status = self._process.wait(timeout=15)
        self._reader.join()
        self._process.stdout.close()
        self._process.stderr.close()
        self._dir.cleanup()
        return status
