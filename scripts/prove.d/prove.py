"""Runs the parts of the proof and keeps their results.

Every part is a program of tests (tests/prove_*), or another command. It is told by the environment

    MUSHERFS_PROVE          short or long
    MUSHERFS_SEED           what random choices derive from
    MUSHERFS_PROVE_RESULTS  a directory; each test puts one file NAME.json into it, of one line:
                            {promise, how, numbers, verdict, seed, form, profile, date, kernel}
                            where verdict is "held" or "broken", and numbers an object

and fails with its exit code. A part that ends well with fewer results than it has promises has failed
too, and so has one that does not end in time. Results are kept in target/prove/FORM/PART/NAME.json,
and how the part ended in PART.json beside that folder, with the revision they are of, until the part
runs again.

The short form is built as `cargo test` builds, so it shares that work; it is also part of
scripts/test. The long form is built with the profile `proof`: optimised, because it measures
pauses, but with the checks of a debug build.
"""

import argparse
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "target/prove"
README = ROOT / "README.md"
START = "<!-- written by scripts/prove --report -->"
END = "<!-- end of what scripts/prove wrote -->"
# Several times what the slowest part takes on two processors, in seconds: whoever is stuck is ended.
PATIENCE = {"short": 20 * 60, "long": 4 * 60 * 60}
# How long programs that are told to end may take to unmount.
FAREWELL = 60


@dataclass(frozen=True)
class Part:
    name: str
    what: str
    # How many results it gives, each a row of the table. One that is missing has not been proved.
    promises: int
    # Programs of tests, as `cargo test --test` names them; or
    tests: tuple[str, ...] = ()
    # a command, relative to the repository.
    command: tuple[str, ...] = ()


# Cheapest first.
PARTS = (
    Part("model", "a mount answers as a model of it does, whatever happens", 1, tests=("prove_model",)),
    Part("crash", "killed or upgraded at any time: a pause, and nothing else", 2, tests=("prove_crash",)),
    Part("publish", "killed at any system call, nothing bad is in the cache", 2, tests=("prove_publish",)),
    Part("damage", "no damage to the cache is ever served, and it heals", 5, tests=("prove_damage",)),
    Part("many", "many processes and users share caches", 2, tests=("prove_many",)),
    Part("schedules", "what meets in memory and in locked files, in thousands of orders", 5, tests=("prove_schedules",)),
    Part("network", "every fault of the network meets every operation", 3, tests=("prove_network",)),
    Part("fuzz", "whatever strangers write is read without a panic", 1, command=("python3", "scripts/prove.d/fuzz.py")),
    Part("soak", "what a daemon takes of the machine stays the same", 1, tests=("prove_soak",)),
    Part("systemd", "the shipped unit under a real systemd", 1, tests=("prove_systemd",)),
)


def test_command(programs, profile, only):
    named = [word for program in programs for word in ("--test", program)]
    nextest = ["cargo", "nextest"]
    if subprocess.run([*nextest, "--version"], capture_output=True, check=False).returncode == 0:
        return [*nextest, "run", "--locked", "--cargo-profile", profile, *named,
                "--no-capture", "--no-fail-fast", *only]
    return ["cargo", "test", "--locked", "--profile", profile, *named, "--no-fail-fast",
            "--", "--nocapture", "--test-threads=1", *only]


def revision():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)

    known = git("rev-parse", "--short=10", "HEAD")
    if known.returncode != 0:
        return "unknown"
    changed = git("status", "--porcelain").stdout.strip()
    return known.stdout.strip() + ("+" if changed else "")


def ended(command, environment, patience):
    """The exit code of a command, or None if it had to be ended."""
    # A session of its own, so that what it has started can be told to end as well.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise


def run(part, form, profile, seed, only):
    """Runs one part and keeps what comes of it; its results, and why it has failed, or None.

    Of a part of which only some tests are run, the former results of the others stay.
    """
    kept = KEPT / form / part.name
    former = {}
    if only:
        former = {path.stem: json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))}
    before = revision()
    with tempfile.TemporaryDirectory(prefix="musherfs-prove-") as results:
        environment = os.environ | {
            "MUSHERFS_PROVE": form,
            "MUSHERFS_SEED": str(seed),
            "MUSHERFS_PROVE_RESULTS": results,
            "MUSHERFS_REQUIRE_FUSE": "1",
        }
        command = list(part.command) or test_command(part.tests, profile, only)
        code = ended(command, environment, PATIENCE[form])
        found = {}
        for path in sorted(pathlib.Path(results).glob("*.json")):
            found[path.stem] = json.loads(path.read_text())
    now = found
    found = former | now
    broken = [name for name, result in found.items() if result["verdict"] != "held"]
    if code is None:
        failure = f"did not end within {PATIENCE[form] // 60} minutes"
    elif broken:
        failure = f"broken: {', '.join(broken)}"
    elif code != 0:
        failure = f"ended with {code}"
    else:
        failure = None
    missing = f"gave {len(found)} results of {part.promises}" if len(found) != part.promises else None
    # What was committed or changed meanwhile may have been built, or not.
    of = before if revision() == before else f"{before.removesuffix('+')}+"
    ending = {"failure": failure or missing, "revision": of, "form": form, "profile": profile,
              "date": datetime.now(timezone.utc).isoformat()}
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for name, result in found.items():
        result = result | {"revision": of} if name in now else result
        (kept / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False) + "\n")
    kept.with_suffix(".json").write_text(json.dumps(ending) + "\n")
    # Whoever asks for some tests is told of these.
    return now, failure or (None if only else missing)


def in_words(numbers):
    def value(it):
        if isinstance(it, bool) or not isinstance(it, (int, float)):
            return str(it)
        return f"{it:,}" if isinstance(it, int) else f"{it:,.1f}"

    return ", ".join(f"{value(it)} {name}" for name, it in numbers.items())


def last_run(part):
    """How a part last ended and with which results: in the long form, if it was ever run; or None."""
    for form in ("long", "short"):
        kept = KEPT / form / part.name
        if kept.with_suffix(".json").exists():
            results = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
            return json.loads(kept.with_suffix(".json").read_text()), results
    return None


def row(*cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(former):
    """The table; a part that was not run here keeps the rows that it has in the `former` one."""
    lines = ["| promise | how it is proved | last result |", "|---|---|---|"]
    for part in PARTS:
        last = last_run(part)
        if last is None:
            kept = [line for line in former if f"| `{part.name}`: " in line]
            lines += kept or [row(part.what, f"`{part.name}`", "not run")]
            continue
        ending, results = last
        for it in results:
            when = f"{it['form']}, {it['date'][:10]}, {it['profile']} build of {it['revision']}, Linux {it['kernel']}"
            lines.append(row(it["promise"], f"`{part.name}`: {it['how']}",
                             f"{it['verdict']}: {in_words(it['numbers']) or 'ended before there were numbers'} ({when})"))
        if ending["failure"] and all(it["verdict"] == "held" for it in results):
            when = f"{ending['form']}, {ending['date'][:10]}, {ending['profile']} build of {ending['revision']}"
            lines.append(row(part.what, f"`{part.name}`: the part as a whole", f"broken: {ending['failure']} ({when})"))
    return lines


def report():
    text = README.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        sys.exit(f"prove: README.md needs the lines {START!r} and {END!r}, once each")
    before, rest = text.split(START)
    former, after = rest.split(END)
    README.write_text("\n".join([before + START, *table(former.splitlines()), END]) + after)


def main():
    parser = argparse.ArgumentParser(prog="scripts/prove", description="Proves what the mount promises.")
    parser.add_argument("--long", action="store_true", help="the long form: minutes to hours a part")
    parser.add_argument("--seed", type=int, help="repeats the random choices of a run (default: new ones)")
    parser.add_argument("--profile", help="the build to prove (default: dev, and proof for --long)")
    parser.add_argument("--list", action="store_true", help="lists the parts")
    parser.add_argument("--report", action="store_true", help="writes the table of last results into README.md")
    parser.add_argument("parts", nargs="*", metavar="PART[/TEST]",
                        help="the parts to run (default: all), or of one the tests whose names have TEST in them")
    given = parser.parse_args()
    known = {part.name: part for part in PARTS}
    wanted = [tuple(name.split("/", 1)) for name in given.parts] or [(part.name,) for part in PARTS]
    unknown = ["/".join([name, *only]) for name, *only in wanted
               if name not in known or (only and not known[name].tests)]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)} (there are {', '.join(known)})")
    if given.list:
        for part in PARTS:
            print(f"{part.name:10} {part.what}")
        return 0
    if given.report:
        report()
        return 0

    form = "long" if given.long else "short"
    profile = given.profile or ("proof" if given.long else "dev")
    seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
    rows, failures = [], 0
    for name, *only in wanted:
        part = known[name]
        print(f"\n== {part.name} ({form}, seed {seed}): {part.what}", flush=True)
        start = time.monotonic()
        results, failure = run(part, form, profile, seed, only)
        took = time.monotonic() - start
        for name, it in results.items():
            rows.append((part.name, name, it["verdict"], in_words(it["numbers"])))
        if failure:
            failures += 1
            again = f"scripts/prove {'--long ' if given.long else ''}--profile {profile} --seed {seed} {'/'.join([part.name, *only])}"
            rows.append((part.name, "", "FAILED", f"{failure}; again: {again}"))
        print(f"== {part.name}: {failure or 'held'} after {took:.0f} s", flush=True)

    print(f"\nseed {seed}")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip())
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
