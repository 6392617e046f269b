"""Has everything that reads what strangers write read what a fuzzer makes up.

The short form reads the corpora below tests/fuzz again, and inputs made of them. The long form builds
the fuzzer's programs (with cargo-fuzz, which it installs below target/ if it is missing) and gives
each of them half an hour, or FUZZ_MINUTES; as many at a time as there are processors, or FUZZ_JOBS.
New inputs go to target/fuzz/found, those that crash to target/fuzz/artifacts: mend the reader, and put
the input into tests/fuzz/corpus.
"""

import concurrent.futures
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FUZZ = ROOT / "tests/fuzz"
BUILT = ROOT / "target/fuzz"
CARGO_FUZZ = "0.13.2"
# Readers of what strangers write; one that is not listed would not be missed otherwise.
TARGETS = 10


def cargo_fuzz():
    found = shutil.which("cargo-fuzz")
    if found:
        return found
    tools = ROOT / "target/tools"
    program = tools / "bin/cargo-fuzz"
    if not program.exists():
        subprocess.run(["cargo", "install", "--locked", "--root", tools, f"cargo-fuzz@{CARGO_FUZZ}"], check=True)
    return str(program)


def build():
    program = cargo_fuzz()
    # The crate's own dependencies, not newer ones.
    shutil.copy(ROOT / "Cargo.lock", FUZZ / "Cargo.lock")
    # The flags are the unstable compiler's; without a sanitizer, for there is no unsafe code.
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    common = ["--fuzz-dir", FUZZ]
    build_command = [program, "fuzz", "build", *common, "--sanitizer", "none", "--target-dir", BUILT]
    subprocess.run(build_command, cwd=ROOT, env=environment, check=True)
    listed = subprocess.run([program, "fuzz", "list", *common], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = listed.stdout.split()
    if len(targets) != TARGETS:
        sys.exit(f"fuzz: {len(targets)} targets instead of {TARGETS}: {targets}")
    return targets


def run(target, seconds, seed):
    """Runs one target: how many inputs, and what it said if it crashed."""
    found, artifacts = BUILT / "found" / target, BUILT / "artifacts" / target
    for folder in (found, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    programs = sorted(BUILT.glob(f"*/release/{target}"))
    ended = subprocess.run(
        [programs[-1], f"-max_total_time={seconds}", f"-seed={seed % (1 << 32)}", "-timeout=10", "-max_len=8192",
         "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={artifacts}/", found, FUZZ / "corpus" / target],
        capture_output=True, text=True, errors="replace", check=False,
        # SIGPIPE stays ignored, as in every program that Rust starts; here the fuzzer's does.
        restore_signals=False)
    counted = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    inputs = int(counted[1]) if counted else 0
    return target, inputs, ended.stderr[-3000:] if ended.returncode or not inputs else None


def main():
    if os.environ.get("MUSHERFS_PROVE") != "long":
        command = ["cargo", "test", "--locked", "--quiet", "--test", "fuzz_corpora", "--", "--nocapture", "--test-threads=1"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    minutes = float(os.environ.get("FUZZ_MINUTES", "30"))
    seed = int(os.environ.get("MUSHERFS_SEED", "1"))
    jobs = int(os.environ.get("FUZZ_JOBS", "0")) or os.cpu_count() or 1
    targets = build()
    numbers, crashed = {"minutes a target": minutes, "targets at a time": jobs}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for target, inputs, crash in pool.map(lambda it: run(it, int(minutes * 60), seed), targets):
            numbers[target] = inputs
            print(f"{target}: {inputs} inputs{', FAILED' if crash else ''}", flush=True)
            if crash:
                crashed.append(target)
                print(crash)
    results = os.environ.get("MUSHERFS_PROVE_RESULTS")
    if results:
        result = {
            "promise": "nothing that strangers write makes a reader panic, hang or take all memory",
            "how": "a coverage-guided fuzzer on every reader",
            "numbers": numbers,
            "verdict": "broken" if crashed else "held",
            "seed": seed,
            "form": "long",
            "profile": "fuzz",
            "date": datetime.now(timezone.utc).isoformat(),
            "kernel": platform.release(),
        }
        (pathlib.Path(results) / "fuzz.json").write_text(json.dumps(result) + "\n")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
