"""Measures a musherfs mount against its targets.

Every workload runs on a native copy of the same files, on the mount, and on `rclone mount`, taking
turns within each round, so that whatever else the machine does hits all of them. A round's value is
its fastest pass, since other work only ever adds time; a row is the median of the rounds' values, its
ratio the median of the rounds' ratios (native time / mount time: 1.00 is native speed). Mounts are
made anew in every round; what can be done only once on each is done on several.

Requests are what the daemon's own counters say. A row that promises none may have none in any round.
Only where the machine has a DAMON scheme that pages out what it finds idle, as hosts of virtual
machines set up, so that cached pages vanish at any moment and have to be read again, READs are held to
the quietest round instead: a protocol that needs a READ needs it in every round. The table shows the
least and the most and what kinds came, and its head whether the machine does that.

Linux fills a FUSE mount's page cache with single pages and ext4's with large ones, so where free
memory is in fragments the mount alone reads scattered pages, and the sequential row suffers. That is
what users have, so it is measured; and, where root runs this, a second time right after the kernel
has joined its free pages, to tell this from everything else.

Files: 5,000 of 4 KiB, text, in 150 nested directories, and one of 64 MiB, all cached; the network is
an address that answers nobody. What has to be fetched comes from `musherfs registry serve` through a
proxy that counts, or from an OCI registry 20 ms away, beside what curl (50 connections) and the `oras`
package from PyPI (one file after the other) need for the same files. The programs that read are small
loops in C (driver.c) and the users' own tools.

Ends with 0 if all targets are reached, 1 if one is missed, 2 if it could not be measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import fixtures
import services
from services import Failed, Musherfs, Rclone, check

HERE = Path(__file__).resolve().parent
VERSION = "1.0.0"
READERS = 64
MANY = 100_000
PARTS = ("warm", "cold", "oci", "memory", "start")
# Mounts a round for what can be done only once on each.
FRESH_MOUNTS = 3

CONTENT_REQUEST = r"/assets/|:pull|/blobs/"
RESOLVE_REQUEST = r":resolve"
# At a web server that has directories.
FILE_REQUEST = r"^GET .*[^/]$"

PYTHON_READER = """
import sys, time
paths = open(sys.argv[1]).read().split()
for _ in range(int(sys.argv[2])):
    start, length = time.perf_counter_ns(), 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            length += len(file.read())
    print(time.perf_counter_ns() - start, length)
"""


def compact_memory() -> bool:
    """Has the kernel join its free pages; only root may."""
    try:
        Path("/proc/sys/vm/compact_memory").write_text("1")
    except OSError:
        return False
    return True


def pages_are_taken_away() -> bool:
    """Whether DAMON pages out memory that it finds idle: cached pages of files that are in use, too."""
    schemes = Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/contexts/*/schemes/*/action")
    running = (scheme.parents[4] / "state" for scheme in schemes if scheme.read_text().strip() == "pageout")
    return any(state.read_text().strip() == "on" for state in running)


def log(message: str) -> None:
    """Progress, on standard error: standard output is the table."""
    print(f"bench: {message}", file=sys.stderr, flush=True)


# ----- what was measured ----------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table."""

    what: str
    target: str
    unit: str = "s"
    # Decides whether the target is reached, from the row itself; none for rows without a target.
    reached: object = None
    native: list[float] = field(default_factory=list)
    mount: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)
    # The most requests of a round that were no READs.
    others: int = 0
    # What stands in the column of the native filesystem, if it is something else.
    against: str = "native"
    note: str = ""

    def count(self, requests: Counter, passes: int = 1) -> None:
        """Takes in a round's requests; many are told by the pass."""
        self.requests.append(requests.total() // passes)
        self.kinds.update(requests)
        self.others = max(self.others, requests.total() - requests["fuse_read"])

    @property
    def ratio(self) -> float | None:
        """Native time / mount time."""
        return median([n / m for n, m in zip(self.native, self.mount)])

    @property
    def peer_ratio(self) -> float | None:
        """Native time / the peer's time."""
        return median([n / m for n, m in zip(self.native, self.peer)])

    @property
    def verdict(self) -> str:
        """`ok`, `MISSED`, or nothing where there is no target."""
        if self.reached is None:
            return ""
        return "ok" if self.reached(self) else "MISSED"

    def as_json(self) -> dict:
        """All that is known, for machines."""
        return {
            "workload": self.what,
            "target": self.target,
            "verdict": self.verdict or None,
            "unit": self.unit,
            "ratio": self.ratio,
            "peerRatio": self.peer_ratio,
            "against": self.against,
            "median": {"native": median(self.native), "musherfs": median(self.mount), "rclone": median(self.peer)},
            "rounds": {"native": self.native, "musherfs": self.mount, "rclone": self.peer},
            "requests": self.requests,
            "requestKinds": self.kinds,
            "note": self.note or None,
        }


def median(values):
    """The median, or None of nothing."""
    return statistics.median(values) if values else None


def at_least(ratio: float, requests: int | None = None):
    """A target: this much of the native speed, and no more requests."""
    worst = min if pages_are_taken_away() else max

    def reached(row: Row) -> bool:
        quiet = requests is None or (row.others <= requests and worst(row.requests) <= requests)
        return row.ratio is not None and row.ratio >= ratio and quiet

    return reached


def at_most(limit: float):
    """A target: the mount's median is not above the limit."""
    return lambda row: bool(row.mount) and median(row.mount) <= limit


def never_above(limit: float):
    """A target: no single measurement is above the limit."""
    return lambda row: bool(row.mount) and max(row.mount) <= limit


def always(value: float):
    """A target: every single measurement is this."""
    return lambda row: bool(row.mount) and set(row.mount) == {value}


# ----- the machinery of a run -----------------------------------------------------------------------


class Bench:
    """One run: its options, its directory, its programs, its rows."""

    def __init__(self, options, work: Path):
        self.options, self.work = options, work
        self.program, self.rounds, self.passes = options.musherfs, options.rounds, options.passes
        self.rows: list[Row] = []
        self.driver = work / "driver"
        check(["cc", "-O2", "-o", self.driver, HERE / "driver.c"])

    def row(self, *words, **more) -> Row:
        """A new line of the table."""
        row = Row(*words, **more)
        self.rows.append(row)
        return row

    def drive(self, *words) -> list[float]:
        """Runs the driver; the seconds of each pass."""
        lines = check([self.driver, *map(str, words)]).splitlines()
        return [int(line.split()[0]) / 1e9 for line in lines]

    def directory(self, name: str) -> Path:
        """A directory of this run."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def kernel_requests(after: dict[str, int], before: dict[str, int] | None = None) -> Counter:
    """Requests that the kernel sent, by kind. STATFS, which it never caches, is not counted here."""
    others = ("fuse_statfs", "fuse_failed")
    counts = Counter({name: n for name, n in after.items() if name.startswith("fuse_") and name not in others})
    counts.subtract({name: before[name] for name in counts} if before else {})
    return +counts


# ----- everything that is cached --------------------------------------------------------------------


class Warm:
    """The rows about files whose content is in the cache."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.list = bench.work / "files.txt"
        self.home = bench.work / "home-warm"
        self.native = bench.work / "native"

        log(f"writing {fixtures.FILES} files, a copy of them, and one of 64 MiB")
        files = {path: fixtures.text(path, fixtures.FILE_SIZE) for path in fixtures.paths()}
        large = {"large.txt": fixtures.text("large", 1 << 20) * (fixtures.LARGE_SIZE >> 20)}
        self.list.write_text("".join(f"{path}\n" for path in files))
        fixtures.write_tree(self.native / "files", files)
        fixtures.write_tree(self.native / "large", large)
        cache = fixtures.Cache(self.home)
        cache.add("bench", "files", VERSION, files)
        cache.add("bench", "large", VERSION, large)
        # What is still to be written would disturb the first rounds.
        os.sync()

        row = bench.row
        self.first_walk = row("first walk after mount (find -printf)", "<= 400 requests")
        self.first_walk.reached = lambda row: max(row.requests) <= 400
        self.walked = row("first read of every file, verified, after a walk", ">= 0.08", reached=at_least(0.08))
        self.unwalked = row("first read of every file, verified, no walk", ">= 0.03", reached=at_least(0.03))
        self.read = row("warm open+read+close of all files", ">= 0.72, 0 requests", reached=at_least(0.72, 0))
        self.rg = row("warm rg over the tree", ">= 0.85, 0 requests", reached=at_least(0.85, 0))
        self.find = row("warm walk with stat (find -printf)", ">= 0.95, 0 requests", reached=at_least(0.95, 0))
        self.ls = row("warm walk with stat (ls -lR)", ">= 0.95, 0 requests", reached=at_least(0.95, 0))
        self.python = row("warm Python open(path).read() of all files", ">= 0.20", reached=at_least(0.2))
        self.sequential = row("warm sequential read of 64 MiB", ">= 0.65", reached=at_least(0.65))
        self.compacted = row("the same, free memory joined before", ">= 0.65", reached=at_least(0.65))
        self.latency = {
            call: row(f"warm {call}, median of one call", "", unit="µs") for call in ("open", "read", "close")
        }

    def run(self) -> None:
        """All rounds."""
        bench = self.bench
        with ExitStack() as stack:
            server = None
            if bench.options.peer:
                server = stack.enter_context(
                    services.RcloneServer(self.native, bench.work / "rclone-server.log")
                )
                self.fill_peer(server)
            for number in range(1, bench.rounds + 1):
                log(f"warm: round {number} of {bench.rounds}")
                # It is slow, and a quick look needs it only once.
                self.round(server if number == 1 or not bench.options.quick else None)

    def mount(self) -> Musherfs:
        """A new mount of the cache."""
        return Musherfs(self.bench.program, self.home, self.bench.work / "mnt", f"--api-url={fixtures.NOWHERE}")

    def mount_peer(self, server) -> Rclone:
        """A new mount of the peer; its cache stays."""
        return Rclone(server.url, self.bench.work / "rclone-cache", self.bench.work / "mnt-rclone")

    def fill_peer(self, server) -> None:
        """Has everything in the peer's cache before the rounds, as it is in the other one."""
        log("filling the cache of rclone")
        with self.mount_peer(server) as mount:
            self.bench.drive("read", mount.directory / "files", self.list, 1)
            self.bench.drive("sequential", mount.directory / "large" / "large.txt", 1)

    def round(self, server) -> None:
        """One round: three kinds of first times, then everything warm, in turns."""
        native = self.native / "files"
        walk = ("find", ".", "-printf", r"%p %y %s %m %u %T@\n")
        read_native, walk_native = ("read", native, self.list, 1), ("run", native, 1, *walk)
        unwalked, walks, walked = [], [], []
        for _ in range(FRESH_MOUNTS):
            with self.mount() as mount:
                unwalked.append(self.first(mount, read_native, ("read", self.files(mount), self.list, 1)))
        with ExitStack() as stack:
            for last in [False] * (FRESH_MOUNTS - 1) + [True]:
                with ExitStack() as mounted:
                    mount = mounted.enter_context(self.mount())
                    files = self.files(mount)
                    walks.append(self.first(mount, walk_native, ("run", files, 1, *walk)))
                    walked.append(self.first(mount, read_native, ("read", files, self.list, 1)))
                    if last:
                        # The one on which the rest of the round takes place.
                        stack.enter_context(mounted.pop_all())
            for row, samples in ((self.unwalked, unwalked), (self.first_walk, walks), (self.walked, walked)):
                row.native.append(min(native_seconds for native_seconds, _, _ in samples))
                row.mount.append(min(seconds for _, seconds, _ in samples))
                for _, _, requests in samples:
                    row.count(requests)

            peer = None
            if server is not None:
                peer = stack.enter_context(self.mount_peer(server)).directory
                self.first_walk.peer += self.bench.drive("run", peer / "files", 1, *walk)
                self.walked.peer += self.bench.drive("read", peer / "files", self.list, 1)

            def turns(row, *words):
                def on(place):
                    return ("run", place, 1, *words)

                self.turns(row, mount, on(native), on(files), peer and on(peer / "files"))

            # A few passes in one process: its first also warms up the processor.
            self.turns(
                self.read,
                mount,
                ("read", native, self.list, 5),
                ("read", files, self.list, 5),
                peer and ("read", peer / "files", self.list, 1),
            )
            turns(self.rg, "rg", "--no-config", "calculate the answer|never reveal keys", ".")
            turns(self.find, *walk)
            turns(self.ls, "ls", "-lR")
            python = (sys.executable, "-c", PYTHON_READER, self.list, 1)
            self.turns(
                self.python,
                mount,
                ("python", native, *python),
                ("python", files, *python),
                peer and ("python", peer / "files", *python),
            )
            self.turns(
                self.sequential,
                mount,
                *self.sequential_words(mount),
                peer and ("sequential", peer / "large" / "large.txt", 1),
            )
            self.latencies(native, files, peer)
        if compact_memory():
            with self.mount() as mount:
                self.turns(self.compacted, mount, *self.sequential_words(mount), None)
        else:
            self.compacted.reached, self.compacted.note = None, "not measured: only root can have that done"
        if server is not None:
            with self.mount_peer(server) as mount:
                self.unwalked.peer += self.bench.drive("read", mount.directory / "files", self.list, 1)

    def sequential_words(self, mount: Musherfs):
        """Reading the large file, natively and on a mount."""
        large = Path("large.txt")
        mounted = mount.directory / "bench" / f"large@{VERSION}" / large
        return ("sequential", self.native / "large" / large, 5), ("sequential", mounted, 5)

    @staticmethod
    def files(mount: Musherfs) -> Path:
        """The small files in a mount."""
        return mount.directory / "bench" / f"files@{VERSION}"

    def once(self, words) -> float:
        """One turn of one workload; the seconds of its fastest pass."""
        if words[0] != "python":
            return min(self.bench.drive(*words))
        _, place, *command = words
        output = check([str(word) for word in command], cwd=place)
        return min(int(line.split()[0]) / 1e9 for line in output.splitlines())

    def first(self, mount: Musherfs, native, mounted):
        """What can be done only once a mount, after a native pass: both times, and the requests."""
        native_seconds = self.once(native)
        counters = mount.counters()
        seconds = self.once(mounted)
        return native_seconds, seconds, kernel_requests(mount.counters(), counters)

    def turns(self, row: Row, mount: Musherfs, native, mounted, peer) -> None:
        """Warms up both sides, then lets them take turns; then the peer, if there is one."""
        passes = self.bench.passes
        for words in (native, mounted):
            self.once(words)
        counters = mount.counters()
        times: dict[str, list[float]] = {"native": [], "mount": []}
        for number in range(passes):
            sides = [("native", native), ("mount", mounted)]
            # Whoever comes second must not gain or lose by it.
            for side, words in sides if number % 2 == 0 else reversed(sides):
                times[side].append(self.once(words))
        requests = kernel_requests(mount.counters(), counters)
        if peer:
            # Once, and apart: it is slow, and pushes the others out of the processor's caches.
            row.peer.append(self.once(peer))
        row.native.append(min(times["native"]))
        row.mount.append(min(times["mount"]))
        row.count(requests, passes if row is self.python else 1)

    def latencies(self, native, files, peer) -> None:
        """Medians of single calls."""
        for side, place in (("native", native), ("mount", files), ("peer", peer and peer / "files")):
            if place:
                calls = self.bench.drive("latency", place, self.list)
                for row, seconds in zip(self.latency.values(), calls):
                    getattr(row, side).append(seconds * 1e6)


# ----- what has to be fetched -----------------------------------------------------------------------


def cold(bench: Bench) -> None:
    """Rows about requests to a registry: counted where they arrive."""
    once = bench.row(
        f"cold: {READERS} readers open the same uncached file", "1 content request", unit="requests", reached=always(1)
    )
    tools = bench.row(
        "find, du, ls -lR, git status, rsync -n, uncached: resolve", "1 resolve request", unit="requests"
    )
    tools.reached = always(1)
    content = bench.row(
        "find, du, ls -lR, git status, rsync -n, uncached: content", "0 content requests", unit="requests"
    )
    content.reached = always(0)

    log("publishing to a registry")
    root = bench.work / "registry"
    files = {path: fixtures.text(path, fixtures.FILE_SIZE) for path in fixtures.paths()}
    bundles = {"files": files, "single": {"prompts/one.md": fixtures.text("one", 256 << 10)}}
    for slug, content_of in bundles.items():
        source = bench.directory(f"publish-{slug}")
        fixtures.write_definition(source, f"bench/{slug}", VERSION, content_of)
        check([bench.program, "registry", "publish", "--root", root, source])

    with services.Registry(bench.program, root, bench.work / "registry.log") as registry:
        for number in range(bench.options.cold_rounds):
            log(f"cold: round {number + 1} of {bench.options.cold_rounds}")
            with services.CountingProxy(registry.url) as proxy:
                with Musherfs(
                    bench.program, bench.directory(f"home-herd-{number}"), bench.work / "mnt", f"--api-url={proxy.url}"
                ) as mount:
                    file = mount.directory / "bench" / f"single@{VERSION}" / "prompts" / "one.md"
                    bench.drive("herd", READERS, file)
                    once.mount.append(proxy.count(CONTENT_REQUEST))
                    once.requests.append(proxy.count())
            with services.CountingProxy(registry.url) as proxy:
                with Musherfs(
                    bench.program, bench.directory(f"home-tools-{number}"), bench.work / "mnt", f"--api-url={proxy.url}"
                ) as mount:
                    look_around(bench, mount.directory / "bench" / "files", len(files), number)
                    tools.mount.append(proxy.count(RESOLVE_REQUEST))
                    content.mount.append(proxy.count(CONTENT_REQUEST))
                    tools.requests.append(proxy.count())
                    content.requests.append(proxy.count())
    for row in (once, tools, content):
        row.note = "requests: all that arrived at the registry"


def look_around(bench: Bench, place: Path, files: int, number: int) -> None:
    """What looks at names and sizes, but at no content."""
    inside = f"{place}/"
    found = check(["find", inside, "-type", "f", "-printf", r"%s\n"]).split()
    if len(found) != files or set(found) != {str(fixtures.FILE_SIZE)}:
        raise Failed(f"the mount shows {len(found)} files instead of {files}")
    check(["du", "-s", inside])
    check(["ls", "-lR", inside])
    git = bench.directory(f"git-{number}")
    check(["git", "init", "--quiet", git])
    check(["git", f"--git-dir={git}/.git", f"--work-tree={inside}", "status", "--porcelain", "--untracked-files=all"])
    check(["rsync", "-an", "--stats", inside, bench.directory("rsync-target")])


def cold_peer(bench: Bench) -> None:
    """The same on the peer, from a web server behind the same proxy."""
    rows = {row.what: row for row in bench.rows}
    herd = next(row for what, row in rows.items() if what.startswith("cold:"))
    content = next(row for what, row in rows.items() if what.endswith("uncached: content"))
    native = bench.work / "peer-cold"
    files = {path: fixtures.text(path, fixtures.FILE_SIZE) for path in fixtures.paths()}
    fixtures.write_tree(native / "files", files)
    fixtures.write_tree(native / "single", {"one.md": fixtures.text("one", 256 << 10)})
    with services.RcloneServer(native, bench.work / "rclone-cold.log") as server:
        with services.CountingProxy(server.url) as proxy:
            with Rclone(f"{proxy.url}/single/", bench.work / "rclone-herd", bench.work / "mnt-rclone") as mount:
                bench.drive("herd", READERS, mount.directory / "one.md")
                herd.peer.append(proxy.count(FILE_REQUEST))
        with services.CountingProxy(server.url) as proxy:
            with Rclone(f"{proxy.url}/files/", bench.work / "rclone-tools", bench.work / "mnt-rclone") as mount:
                look_around(bench, mount.directory, len(files), 99)
                content.peer.append(proxy.count(FILE_REQUEST))


# ----- a registry far away --------------------------------------------------------------------------


class Oci:
    """Rows about reading all of a bundle for the first time, from an OCI registry."""

    FILES, FILE_SIZE, DELAY, READERS, CONNECTIONS = 2_000, 4096, 0.02, 4, 50
    NAME = "bench/kit"
    ORAS = "import sys, oras.client; client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True); "
    ORAS += "client.pull(target=sys.argv[1] + '/' + sys.argv[2], outdir=sys.argv[3])"

    def __init__(self, bench: Bench):
        self.bench, self.work = bench, bench.directory("oci")
        self.root = bench.directory("oci/registry")
        away = f"{self.DELAY * 1000:.0f} ms away"
        what = f"cold read of {self.FILES:,} files, OCI registry {away}, {self.READERS} readers"
        self.beside_curl = self.row(what, "curl", "<= 1.5 x curl", 1 / 1.5, f"curl, {self.CONNECTIONS} connections")
        self.beside_oras = None
        if not bench.options.quick:
            # It takes a minute.
            self.beside_oras = self.row(what, "oras", "<= 0.1 x oras", 10, "oras, one by one, once")

        log(f"an artifact of {self.FILES} files")
        paths = fixtures.paths(self.FILES)
        self.files = {path: fixtures.text(path, self.FILE_SIZE) for path in paths}
        self.digests = fixtures.write_artifact(self.root, self.NAME, VERSION, self.files)
        # Each reader has its own part of the bundle.
        self.lists = []
        for reader in range(self.READERS):
            part = paths[reader * len(paths) // self.READERS : (reader + 1) * len(paths) // self.READERS]
            file = self.work / f"files-{reader}.txt"
            file.write_text("".join(f"{path}\n" for path in part))
            self.lists.append(file)

    def run(self) -> None:
        """All rounds: everybody takes turns, each time with nothing cached.

        What they leave stays until the end: ext4 makes files slowly where many were removed just before.
        """
        rounds = max(self.bench.rounds, 3)
        with services.SlowRegistry(self.root, self.DELAY, self.work / "registry.log") as registry:
            for number in range(rounds):
                log(f"oci: round {number + 1} of {rounds}")
                turns = [self.mounted, self.fetched]
                for turn in turns if number % 2 == 0 else reversed(turns):
                    turn(registry, number)
            if self.beside_oras is not None:
                log("oci: oras, one file after the other")
                # Once: it waits for the registry two thousand times, which takes as long every time.
                self.beside_oras.native = [self.pulled(registry)] * rounds
                self.beside_oras.mount = self.beside_curl.mount
                self.beside_oras.requests = self.beside_curl.requests

    def row(self, what: str, peer: str, target: str, ratio: float, against: str) -> Row:
        """A line that compares with another client instead of the native filesystem."""
        row = self.bench.row(f"{what}: {peer}", target, reached=at_least(ratio), against=against)
        row.note = f"native is {against}; each round once, with nothing cached; requests: all that arrived"
        return row

    def mounted(self, registry, number: int) -> None:
        """The readers' turn, from the first name on."""
        home = self.bench.directory(f"oci/home-{number}")
        option = f"--oci={registry.url}"
        with Musherfs(self.bench.program, home, self.bench.work / "mnt", option) as mount:
            place = mount.directory / f"{self.NAME}@{VERSION}"
            before = registry.count()
            begin = time.monotonic()
            readers = [
                subprocess.Popen([self.bench.driver, "read", place, part, "1"], stdout=subprocess.PIPE)
                for part in self.lists
            ]
            outputs = [reader.communicate()[0] for reader in readers]
            self.beside_curl.mount.append(time.monotonic() - begin)
            self.beside_curl.requests.append(registry.count() - before)
            if any(reader.returncode for reader in readers):
                raise Failed("a reader of the mount failed")
            read = sum(int(output.split()[1]) for output in outputs)
            if read != self.FILES * self.FILE_SIZE:
                raise Failed(f"the readers got {read} bytes")

    def fetched(self, registry, number: int) -> None:
        """The same blobs by curl, into files."""
        place = self.bench.directory(f"oci/curl-{number}")
        urls = self.work / "urls.txt"
        blobs = f"{registry.url}/v2/{self.NAME}/blobs"
        urls.write_text("".join(f'url = "{blobs}/{name}"\noutput = "{name[7:]}"\n' for name in self.digests))
        command = ["curl", "--silent", "--fail", "--parallel", "--parallel-max", str(self.CONNECTIONS)]
        command += ["--config", urls]
        begin = time.monotonic()
        check(command, cwd=place)
        self.beside_curl.native.append(time.monotonic() - begin)
        if len(list(place.iterdir())) != self.FILES:
            raise Failed("curl did not fetch everything")

    def pulled(self, registry) -> float:
        """The same artifact by a client that asks for one file after the other."""
        python = HERE.parent.parent / "target" / "venv" / "bin" / "python3"
        place = self.bench.directory("oci/oras")
        begin = time.monotonic()
        check([python, "-c", self.ORAS, registry.host, f"{self.NAME}:{VERSION}", place], cwd=place)
        seconds = time.monotonic() - begin
        if len([path for path in place.rglob("*") if path.is_file()]) != self.FILES:
            raise Failed("oras did not pull everything")
        return seconds


# ----- memory and time to start ---------------------------------------------------------------------


def many_files(bench: Bench) -> None:
    """Memory after walking very many files: in twenty bundles, and in one."""
    limit = 60 << 20
    for bundles in (20, 1):
        per_bundle = MANY // bundles
        row = bench.row(
            f"resident memory after walking {MANY:,} files, {bundles} bundle{'s' * (bundles > 1)}",
            "<= 60 MiB",
            unit="bytes",
            reached=never_above(limit),
        )
        log(f"memory: {bundles} x {per_bundle} files")
        home = bench.work / f"home-many-{bundles}"
        cache = fixtures.Cache(home)
        for number in range(bundles):
            slug = f"bundle-{number:02}"
            cache.add_manifest("many", slug, VERSION, fixtures.invented_rows(slug, per_bundle))
        with Musherfs(bench.program, home, bench.work / "mnt", f"--api-url={fixtures.NOWHERE}") as mount:
            seen = 0
            for number in range(bundles):
                place = mount.directory / "many" / f"bundle-{number:02}@{VERSION}"
                seen += len(check(["find", place, "-type", "f", "-printf", r"%s\n"]).split())
            if seen != MANY:
                raise Failed(f"the mount shows {seen} files instead of {MANY}")
            row.mount.append(mount.memory())
            row.note = f"at its peak {mount.memory('VmHWM') / (1 << 20):.0f} MiB"
            row.requests.append(kernel_requests(mount.counters()).total())


def many_files_peer(bench: Bench) -> None:
    """The same on the peer."""
    row = next(row for row in bench.rows if row.what.endswith("files, 20 bundles"))
    log("memory: the same on rclone")
    native = bench.work / "peer-many"
    for number in range(20):
        for path in fixtures.paths(MANY // 20):
            file = native / f"bundle-{number:02}" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.truncate(file, fixtures.FILE_SIZE)
    with services.RcloneServer(native, bench.work / "rclone-many.log") as server:
        with Rclone(server.url, bench.work / "rclone-many", bench.work / "mnt-rclone") as mount:
            check(["find", mount.directory, "-type", "f", "-printf", r"%s\n"])
            row.peer.append(mount.memory())


def start(bench: Bench) -> None:
    """From `musherfs mount` to an answer, with nobody to ask."""
    row = bench.row(
        "mount to first stat, network down, 100 cached bundles", "<= 100 ms", unit="s", reached=at_most(0.1)
    )
    home, bundles = bench.work / "home-start", 100
    cache = fixtures.Cache(home)
    for number in range(bundles):
        slug = f"bundle-{number:03}"
        cache.add_manifest("bench", slug, VERSION, fixtures.invented_rows(slug, 50))
    for number in range(max(bench.rounds, 3)):
        log(f"start: round {number + 1} of {max(bench.rounds, 3)}")
        mount = Musherfs(bench.program, home, bench.work / "mnt", f"--api-url={fixtures.NOWHERE}")
        place = mount.directory / "bench" / f"bundle-{number:03}@{VERSION}" / fixtures.paths(50)[0]
        with ExitStack() as stack:
            stack.push(mount)
            begin = time.monotonic()
            mount.mount()
            size = os.stat(place).st_size
            row.mount.append(time.monotonic() - begin)
            if size != fixtures.FILE_SIZE:
                raise Failed(f"the mount says that {place} has {size} bytes")
            # So that leaving waits for its end.
            mount.status()


# ----- the table ------------------------------------------------------------------------------------


def shown(value: float | None, unit: str) -> str:
    """A measurement as people read it."""
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / (1 << 20):.1f} MiB"
    if unit == "requests":
        return f"{value:.0f}"
    if unit == "µs":
        return f"{value:.1f} µs"
    return f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.1f} s"


def span(counts: list[int]) -> str:
    """The least and the most."""
    if not counts:
        return "-"
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least}-{most}"


def table(rows: list[Row]) -> str:
    """The rows as text."""
    header = ("workload", "target", "ratio", "requests", "native", "musherfs", "rclone", "its ratio", "")
    lines = [header]
    for row in rows:
        ratio, peer_ratio = row.ratio, row.peer_ratio
        lines.append(
            (
                row.what,
                row.target or "-",
                f"{ratio:.2f}" if ratio is not None else "-",
                span(row.requests),
                shown(median(row.native), row.unit),
                shown(median(row.mount), row.unit),
                shown(median(row.peer), row.unit),
                f"{peer_ratio:.3f}" if peer_ratio is not None else "-",
                row.verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in (0, 1, 8) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    notes = [f"{row.what}: {row.note}" for row in rows if row.note]
    for row in rows:
        if row.kinds and row.target.endswith(" 0 requests"):
            kinds = ", ".join(f"{name.removeprefix('fuse_')} {n}" for name, n in row.kinds.items())
            notes.append(f"{row.what}: in all rounds {kinds}")
    return "\n".join(text + [""] * bool(notes) + notes)


def machine(options, work: Path) -> dict:
    """Where this was measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    filesystem = check(["df", "--output=fstype", work]).split()[-1]
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "filesystem": filesystem,
        "load": os.getloadavg()[0],
        "musherfs": check([options.musherfs, "--version"]).strip(),
        "python": platform.python_version(),
        "rclone": check(["rclone", "version"]).split()[1] if options.peer else None,
        "rcloneOptions": list(Rclone.options) if options.peer else None,
        "pagesOut": pages_are_taken_away(),
        "rounds": options.rounds,
        "passes": options.passes,
    }


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--musherfs", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer rounds, less of the peer")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (7; quick: 3)")
    parser.add_argument("--passes", type=int, metavar="N", help="passes of a workload in a round (9; quick: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="work below DIR ($TMPDIR, or /var/tmp)")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without rclone")
    parser.add_argument(
        "--only", metavar="PARTS", default=",".join(PARTS), help=f"some of: {','.join(PARTS)}"
    )
    options = parser.parse_args()
    options.rounds = max(1, options.rounds or (3 if options.quick else 7))
    options.passes = max(1, options.passes or (5 if options.quick else 9))
    options.cold_rounds = 1 if options.quick else 3
    options.parts = set(options.only.split(","))
    if unknown := options.parts - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    options.dir = options.dir or Path(os.environ.get("TMPDIR") or "/var/tmp")
    return options


def main() -> int:
    """Measures and prints; the exit code."""
    options = arguments()
    services.stop_on_signals()
    with tempfile.TemporaryDirectory(prefix="musherfs-bench-", dir=options.dir) as made:
        # Without links in it, as the kernel names mounts.
        work = Path(made).resolve()
        bench = Bench(options, work)
        about = machine(options, work)
        if about["filesystem"] != "ext4":
            log(f"the native copy is on {about['filesystem']}: the targets are meant for ext4")
        if about["load"] > about["processors"] / 2:
            log(f"the machine is busy (load {about['load']:.1f}): ratios will vary")
        if "warm" in options.parts:
            Warm(bench).run()
        if "cold" in options.parts:
            cold(bench)
            if options.peer:
                cold_peer(bench)
        if "oci" in options.parts:
            Oci(bench).run()
        if "memory" in options.parts:
            many_files(bench)
            if options.peer and not options.quick:
                many_files_peer(bench)
        if "start" in options.parts:
            start(bench)
    report(bench, about, options)
    missed = [row for row in bench.rows if row.verdict == "MISSED"]
    for row in missed:
        log(f"missed: {row.what}: {row.target}")
    return 1 if missed else 0


def report(bench: Bench, about: dict, options) -> None:
    """Prints the table, and writes the JSON."""
    print(
        f"{about['musherfs']} on Linux {about['kernel']}, {about['processors']} x {about['processor']}, "
        f"beside {about['filesystem']}; Python {about['python']}"
    )
    if about["rclone"]:
        print(f"peer: rclone {about['rclone']} mount {' '.join(about['rcloneOptions'])}")
    rounds = f"medians of {about['rounds']} rounds, each its fastest of {about['passes']} passes"
    print(f"{rounds}; ratio 1.00 = native speed; load {about['load']:.1f} at the start")
    print("DAMON pages out what it finds idle\n" if about["pagesOut"] else "")
    print(table(bench.rows))
    if options.json:
        document = {"machine": about, "rows": [row.as_json() for row in bench.rows]}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, OSError, subprocess.SubprocessError) as error:
        log(str(error))
        sys.exit(2)
