"""What the benchmark starts: mounts, a registry, a proxy that counts, and the peer.

Everything is started by an object that ends it again, by its own handle and nothing else.
"""

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

# Seconds to wait for anything here; far more than it takes.
PATIENCE = 60


class Failed(Exception):
    """The benchmark cannot go on; the message says why."""


def check(command, **options) -> str:
    """Runs a command that must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise Failed(f"{words} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_until(what: str, condition, process: subprocess.Popen | None = None) -> None:
    """Waits for a state that nobody reports."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            raise Failed(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {PATIENCE} seconds")
        time.sleep(0.002)


def is_mounted(directory: Path) -> bool:
    """Whether something is mounted there; asks the kernel's table, not the mount."""
    return f" {directory} " in Path("/proc/self/mountinfo").read_text()


def end(process: subprocess.Popen) -> None:
    """Ends a process of ours."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(home: Path) -> dict[str, str]:
    """This process's environment with another cache and configuration."""
    return {**os.environ, "MUSHER_HOME": str(home)}


class Musherfs:
    """A mount of the program under test, in the background as users have it."""

    name = "musherfs"

    def __init__(self, program: str, home: Path, directory: Path, *options: str):
        self.program, self.directory, self.options = program, directory, options
        self.environment = environment(home)
        self.pid: int | None = None
        directory.mkdir(exist_ok=True)

    def mount(self) -> None:
        """Returns when the mount answers."""
        check([self.program, "mount", *self.options, self.directory], env=self.environment)

    def __enter__(self):
        self.mount()
        try:
            self.status()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if not is_mounted(self.directory):
            return
        umount = [self.program, "umount", self.directory]
        try:
            check(umount, env=self.environment)
        except Failed:
            check([*umount, "--force"], env=self.environment)
        if self.pid is not None:
            # It ends by itself; the next mount is not to be disturbed by that.
            daemon = Path(f"/proc/{self.pid}")
            wait_until("the daemon's end", lambda: not daemon.exists())

    def status(self) -> dict:
        """What the daemon says about itself; not through the mount."""
        answer = check([self.program, "status", "--json"], env=self.environment)
        for mount in json.loads(answer):
            if mount["mountpoint"] == str(self.directory):
                self.pid = mount["pid"]
                return mount
        raise Failed(f"`musherfs status` does not know {self.directory}")

    def counters(self) -> dict[str, int]:
        """The daemon's own counters."""
        return self.status()["counters"]

    def memory(self, what: str = "VmRSS") -> int:
        """The daemon's memory in bytes."""
        return memory(self.pid, what)


def memory(pid: int, what: str = "VmRSS") -> int:
    """A process's memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{what}:\s+(\d+) kB", status, re.M)[1]) * 1024


class Rclone:
    """A mount of the peer, from a web server, with its cache of whole files."""

    name = "rclone"
    options = ("--read-only", "--vfs-cache-mode=full", "--dir-cache-time=24h")

    def __init__(self, url: str, cache: Path, directory: Path):
        self.directory, self.log = directory, cache.parent / "rclone-mount.log"
        self.command = ["rclone", "mount", *self.options, f"--cache-dir={cache}", "--config="]
        self.command += [f"--http-url={url}", ":http:", str(directory)]
        directory.mkdir(exist_ok=True)

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        try:
            wait_until("rclone mount", lambda: is_mounted(self.directory), self.process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # It unmounts when it is told to end.
        end(self.process)
        if is_mounted(self.directory):
            check(["fusermount3", "-u", "-z", self.directory])

    def memory(self) -> int:
        """The process's memory in bytes."""
        return memory(self.process.pid)


class RcloneServer:
    """A directory over HTTP on loopback."""

    def __init__(self, directory: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        self.url = "http://{}:{}".format(*self.address)
        self.command = ["rclone", "serve", "http", "--config=", "--read-only"]
        self.command += ["--addr={}:{}".format(*self.address), str(directory)]
        self.log = log

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        try:
            wait_until("rclone serve", self._answers, self.process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
            return True
        return False

    def __exit__(self, *_):
        end(self.process)


class Registry:
    """`musherfs registry serve` on loopback."""

    def __init__(self, program: str, root: Path, log: Path):
        self.command = [program, "registry", "serve", "--root", str(root), "--listen", "127.0.0.1:0"]
        self.log = log

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on http://"):
            self.__exit__()
            raise Failed(f"the registry said {line!r}: {Path(self.log).read_text()}")
        self.url = line.split()[-1]
        return self

    def __exit__(self, *_):
        end(self.process)
        self.process.stdout.close()


class SlowRegistry:
    """An OCI registry on loopback that takes its time; see slow_registry.py."""

    def __init__(self, root: Path, delay: float, log: Path):
        program = Path(__file__).with_name("slow_registry.py")
        self.command = [sys.executable, str(program), str(root), str(delay)]
        self.log = log

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on http://"):
            self.__exit__()
            raise Failed(f"the slow registry said {line!r}: {Path(self.log).read_text()}")
        self.url = line.split()[-1]
        self.host = self.url.removeprefix("http://")
        return self

    def __exit__(self, *_):
        end(self.process)
        self.process.stdout.close()

    def count(self) -> int:
        """How many requests have come so far."""
        with urllib.request.urlopen(f"{self.url}/requests", timeout=PATIENCE) as answer:
            return int(answer.read())


class CountingProxy:
    """Passes requests on to a server, and remembers them as `METHOD PATH`."""

    def __init__(self, url: str):
        target = url.removeprefix("http://")
        self.requests: list[str] = []
        requests = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Answers in two writes would wait for each other's acknowledgement.
            disable_nagle_algorithm = True
            wbufsize = -1
            upstream: http.client.HTTPConnection | None = None

            def forward(self):
                requests.append(f"{self.command} {self.path}")
                if self.upstream is None:
                    self.upstream = http.client.HTTPConnection(target, timeout=PATIENCE)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                self.upstream.request(self.command, self.path, headers=headers)
                answer = self.upstream.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                        self.send_header(name, value)
                length = answer.getheader("content-length") if self.command == "HEAD" else len(body)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = forward

            def finish(self):
                super().finish()
                if self.upstream is not None:
                    self.upstream.close()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, pattern: str = "") -> int:
        """How many requests matched."""
        return sum(re.search(pattern, request) is not None for request in self.requests)


def stop_on_signals() -> None:
    """Lets SIGTERM, SIGHUP and Ctrl-C end the benchmark tidily, the first of them."""
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def interrupt(number, _):
        # Another one would end the tidying up.
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in signals:
        signal.signal(number, interrupt)
