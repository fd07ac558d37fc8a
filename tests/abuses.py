"""People who send too little, too slowly, too much or nonsense, each a program of its own: `python -m abuses NAME URL`.

It says "on" when it is under way, and goes on until it is ended.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: str) -> Connection:
    """A plain connection."""
    target = urlsplit(url)
    return await asyncio.open_connection(target.hostname, target.port, limit=1024)


async def keep_open(url: str, number: int, first: bytes, then: bytes) -> None:
    """*number* connections that each say *first*, read nothing, and say *then* now and again; who is closed comes
    again."""

    async def one() -> None:
        while True:
            _, writer = await connect(url)
            with suppress(ConnectionError):
                writer.write(first)
                while not writer.is_closing():
                    await asyncio.sleep(0.5)
                    writer.write(then)
                    await writer.drain()
            writer.transport.abort()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(number)))


async def half_open(url: str) -> None:
    """Two hundred that begin a head, and say a letter of it now and then."""
    await keep_open(url, 200, b"POST /v1/comp", b"l")


async def slow_readers(url: str) -> None:
    """Fifty that ask for much, over and over, and read none of it."""
    await keep_open(url, 50, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20, b"")


async def every(seconds: float, url: str, data: bytes) -> None:
    """Send *data* on a connection of its own, again and again, and read what comes for a moment."""
    while True:
        reader, writer = await connect(url)
        with suppress(ConnectionError, TimeoutError):
            writer.write(data)
            async with asyncio.timeout(1):
                await reader.read(4096)
        writer.transport.abort()
        await asyncio.sleep(seconds)


async def oversized(url: str) -> None:
    """Ten times a second a body that is larger than allowed, announced, or in chunks without end."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    await asyncio.gather(
        every(0.2, url, HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 100_000),
        every(0.2, url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 80),
    )


async def malformed(url: str) -> None:
    """Fifty times a second what is no JSON, no HTTP, or nested without end."""
    bodies = (b"{" * 1000, b'{"prompt": ' + b"[" * 20_000, b"\xff\xfe", b'{"prompt": 7, "max_tokens": "many"}')
    requests = [HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    await asyncio.gather(*(every(0.1, url, data) for data in (*requests, b"\x16\x03\x01" * 100)))


async def header_flood(url: str) -> None:
    """Forty times a second thousands of headers, or one that does not end."""
    many = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(2000))
    heads = (many, b"X: " + b"a" * 500_000, many, b"Cookie: " + b"a=b;" * 9000)
    await asyncio.gather(*(every(0.1, url, HEAD + head + b"\r\n\r\n") for head in heads))


ABUSES: Mapping[str, Callable[[str], Awaitable[None]]] = {
    abuse.__name__: abuse for abuse in (half_open, slow_readers, oversized, malformed, header_flood)
}


async def run(name: str, url: str) -> None:
    """Be the abuse *name* of the server at *url*."""
    abusing = asyncio.ensure_future(ABUSES[name](url))
    await asyncio.sleep(0.3)
    print("on", flush=True)
    await abusing


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
