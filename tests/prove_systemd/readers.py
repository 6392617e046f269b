"""Reads in the mount until SIGTERM; then prints what went wrong and how long anybody waited.

What is right is what was published: /opt/published.
"""

import json
import os
import signal
import sys
import threading
import time

ROOT = "/mnt/musher/acme"
VERSION = f"{ROOT}/code-review@1.2.0"
PUBLISHED = "/opt/published"


def content(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # So that the daemon is asked, not the kernel's cache.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


def files(root):
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    }


def main():
    # The definition is what is published by, and not published itself.
    published = files(PUBLISHED) - {"musher.yaml"}
    expected = {os.path.join(VERSION, path): content(os.path.join(PUBLISHED, path)) for path in published}
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    lock = threading.Lock()
    total = {"operations": 0, "longest": 0.0, "errors": []}
    if files(VERSION) != published:
        total["errors"].append(f"{files(VERSION)} are there instead of {published}")

    def read(number):
        operations, longest, errors = 0, 0.0, []
        while not over.is_set():
            for path, right in expected.items():
                start = time.monotonic()
                try:
                    if content(path) != right:
                        errors.append(f"{path}: wrong bytes")
                    if number % 2:
                        os.statvfs(ROOT)
                    else:
                        os.stat(f"{VERSION}/absent-{number}-{operations}") if operations % 7 == 0 else None
                except FileNotFoundError as error:
                    if "absent-" not in str(error):
                        errors.append(f"{path}: {error}")
                except OSError as error:
                    errors.append(f"{path}: {error}")
                longest = max(longest, time.monotonic() - start)
                operations += 1
            time.sleep(0.002)
        with lock:
            total["operations"] += operations
            total["longest"] = max(total["longest"], round(longest, 2))
            total["errors"] += errors[:20]

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for reader in readers:
        reader.start()
    print("reading", file=sys.stderr, flush=True)
    over.wait()
    for reader in readers:
        reader.join()
    print(json.dumps(total))


main()
