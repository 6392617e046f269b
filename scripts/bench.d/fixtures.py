"""What the benchmark reads: trees of text files, natively and as a Musher cache.

The cache is written here, file by file, as any Musher tool may write it (the superset of what all of
them read), so that the program under test has not prepared what it is measured on.
"""

import datetime
import hashlib
import json
import random
from pathlib import Path

# An address that is nobody's (RFC 5737): whoever asks it waits or is refused, as without a network.
NOWHERE = "https://192.0.2.1"
NOWHERE_HOST = "192.0.2.1"

FILES, FILE_SIZE, LARGE_SIZE = 5_000, 4096, 64 << 20

_WORDS = (
    "answer the question with care and name every source that was used before a summary is given "
    "review each change for errors missing tests unclear names and übergroße functions then suggest "
    "never reveal keys or private data ask when instructions conflict prefer small steps 計画 über"
).split()


def text(name: str, size: int) -> bytes:
    """`size` bytes of UTF-8 text that no other name has."""
    dice = random.Random(name)
    lines = [f"# {name}\n"]
    length = len(lines[0].encode())
    while length < size:
        line = " ".join(dice.choices(_WORDS, k=12)) + "\n"
        lines.append(line)
        length += len(line.encode())
    cut = "".join(lines).encode()[: size - 1].decode(errors="ignore")
    return (cut + "\n").encode().ljust(size, b".")


def directories() -> list[str]:
    """150 nested directories: 10, with 2 in each, with 6 in each of those."""
    all_of_them = []
    for area in range(10):
        all_of_them.append(f"area-{area}")
        for topic in range(2):
            all_of_them.append(f"area-{area}/topic-{topic}")
            all_of_them += [f"area-{area}/topic-{topic}/part-{part}" for part in range(6)]
    return all_of_them


def paths(count: int = FILES) -> list[str]:
    """The files' paths, spread evenly over the directories."""
    places = directories()
    return sorted(f"{places[i % len(places)]}/prompt-{i:05}.md" for i in range(count))


def write_tree(root: Path, files: dict[str, bytes]) -> None:
    """The native copy."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class Cache:
    """A cache as the Musher tools share it, below a `MUSHER_HOME`."""

    def __init__(self, home: Path, host: str = NOWHERE_HOST):
        self.root, self.host = home / "cache", host
        self.root.mkdir(parents=True)
        (self.root / "CACHEDIR.TAG").write_text(
            "Signature: 8a477f597d28d172789f06886806bc55\n"
            "# This file is a cache directory tag created by musherfs, for all Musher tools.\n"
            "# For information about cache directory tags, see https://bford.info/cachedir/\n"
        )

    def add(self, namespace: str, slug: str, version: str, files: dict[str, bytes]) -> None:
        """A bundle with all its content."""
        rows = []
        for path, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            blob = self.root / "blobs" / "sha256" / digest[:2] / digest
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            blob.chmod(0o600)
            rows.append((path, digest, len(content)))
        self.add_manifest(namespace, slug, version, rows)

    def add_manifest(self, namespace: str, slug: str, version: str, rows) -> None:
        """A bundle of which only the table is cached: rows of path, digest and size."""
        layers = [
            {
                "assetId": "",
                "logicalPath": path,
                "assetType": "prompt",
                "contentSha256": digest,
                "sizeBytes": size,
                "size": size,
                "mediaType": None,
            }
            for path, digest, size in rows
        ]
        manifest = {
            "bundleId": "",
            "versionId": "",
            "namespace": namespace,
            "slug": slug,
            "ref": f"{namespace}/{slug}",
            "version": version,
            "name": slug,
            "description": None,
            "sourceType": "registry",
            "ociRef": None,
            "ociDigest": None,
            "state": "published",
            "manifest": {"layers": layers},
            "layers": layers,
        }
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        sidecar = {"fetchedAt": stamp, "ttlSeconds": 86400, "ttl": 86400, "ociDigest": None}
        ref = {
            "version": version,
            "fetchedAt": stamp,
            "cachedAt": stamp,
            "ttlSeconds": 300,
            "expiresAt": now.timestamp() + 300,
        }
        directory = self.root / "manifests" / self.host / namespace / slug
        _write_json(directory / f"{version}.json", manifest)
        _write_json(directory / f"{version}.meta.json", sidecar)
        _write_json(self.root / "refs" / self.host / namespace / slug / "latest.json", ref)


def invented_rows(name: str, count: int):
    """Rows of a table whose content nobody has: enough for names and sizes."""
    for path in paths(count):
        yield path, hashlib.sha256(f"{name}/{path}".encode()).hexdigest(), FILE_SIZE


def write_definition(root: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """A directory that can be published."""
    write_tree(root, files)
    definition = {
        "name": name,
        "version": version,
        "description": "files for a benchmark",
        "visibility": "public",
        "license": "MIT",
        "readme": "README.md",
        "assets": [{"logical_path": path, "asset_type": "prompt"} for path in files],
    }
    (root / "README.md").write_text("Files for a benchmark.\n")
    # JSON is YAML.
    (root / "musher.yaml").write_text(json.dumps(definition))


def write_artifact(root: Path, name: str, version: str, files: dict[str, bytes]) -> list[str]:
    """What an OCI registry says about a published bundle, below the paths that it is asked for; the
    digests of the files."""

    def put(path: str, content: bytes) -> None:
        file = root / "v2" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def blob(content: bytes, kind: str, **more) -> dict:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        put(f"blobs/{digest}", content)
        return {"mediaType": kind, "digest": digest, "size": len(content), **more}

    kind = "application/vnd.musher.bundle.v1"
    layers = [
        blob(content, f"{kind}.asset", annotations={"org.opencontainers.image.title": path})
        for path, content in files.items()
    ]
    assets = [
        {"logical_path": path, "asset_type": "prompt", "content_sha256": layer["digest"].partition(":")[2]}
        for path, layer in zip(files, layers)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps({"assets": assets}).encode(), f"{kind}.config"),
        "layers": layers,
        "annotations": {"org.opencontainers.image.version": version},
    }
    content = json.dumps(manifest).encode()
    for reference in (version, f"sha256:{hashlib.sha256(content).hexdigest()}"):
        put(f"manifests/{reference}", content)
    put("tags/list", json.dumps({"name": name, "tags": [version]}).encode())
    return [layer["digest"] for layer in layers]


def _write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    path.chmod(0o600)
