"""An OCI registry that answers from memory, every request after the same delay.

    slow_registry.py DIR SECONDS

Serves the files below DIR under their own paths (`v2/…`), read once at the start, so that neither a
disk nor a database is measured: only the way to the registry, which is as long for everybody. Prints
where it listens. `/requests`, which takes no time, tells how many came so far.

A protocol and not `http.server`, because it must keep up with a hundred connections while its clients
need the processors themselves: a request costs it some tens of microseconds.
"""

import asyncio
import json
import sys
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """What is served, ready to be sent."""

    def __init__(self, root: Path, delay: float):
        self.delay, self.requests = delay, 0
        self.answers: dict[bytes, tuple[bytes, bytes]] = {}
        for file in root.rglob("*"):
            if file.is_file():
                path = f"/{file.relative_to(root)}"
                kind = "application/json"
                if "/manifests/" in path:
                    kind = MANIFEST
                elif "/blobs/" in path:
                    kind = "application/octet-stream"
                body = file.read_bytes()
                self.answers[path.encode()] = (self.head("200 OK", kind, body), body)
        # The version check.
        self.answers[b"/v2/"] = (self.head("200 OK", "application/json", b"{}"), b"{}")
        body = json.dumps({"errors": [{"code": "NOT_FOUND", "message": "there is no such thing"}]}).encode()
        self.absent = (self.head("404 Not Found", "application/json", body), body)

    @staticmethod
    def head(status: str, kind: str, body: bytes) -> bytes:
        """The head of an answer."""
        return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def answer(self, method: bytes, target: bytes) -> bytes:
        """What a request gets."""
        self.requests += 1
        head, body = self.answers.get(target.partition(b"?")[0], self.absent)
        return head if method == b"HEAD" else head + body


class Connection(asyncio.Protocol):
    """One connection: one request after the other, none with a body."""

    def __init__(self, registry: Registry):
        self.registry, self.pending, self.transport = registry, b"", None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.pending += data
        while (end := self.pending.find(b"\r\n\r\n")) >= 0:
            line = self.pending[: self.pending.find(b"\r\n")]
            self.pending = self.pending[end + 4 :]
            method, target, _ = line.split(b" ", 2)
            if target == b"/requests":
                body = str(self.registry.requests).encode()
                self.transport.write(Registry.head("200 OK", "text/plain", body) + body)
                continue
            answer = self.registry.answer(method, target)
            asyncio.get_running_loop().call_later(self.registry.delay, self.send, answer)

    def send(self, answer: bytes) -> None:
        """Whoever has hung up meanwhile gets nothing."""
        if not self.transport.is_closing():
            self.transport.write(answer)


async def main() -> None:
    """Serves until it is ended."""
    registry = Registry(Path(sys.argv[1]), float(sys.argv[2]))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(registry), "127.0.0.1", 0, backlog=1024)
    print("listening on http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
