"""The report of runs in progress, served on this machine and renewed by the browser. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from treering.analysis.runs import files, gather
from treering.config import Invalid
from treering.report.page import compared, page

State = tuple[tuple[str, int, int], ...]  # each file's name, size and time of change


def _page(given: Sequence[str], refresh: int) -> bytes:
    arms = gather(given)
    return page(arms, compared(arms), refresh=refresh).encode()


def server(given: Sequence[str], *, host: str, port: int, refresh: int) -> ThreadingHTTPServer:
    """A server of the report of `given` (runs or studies) at "/"; the caller lets it serve.

    port 0: any that is free. The page is made anew when a run has written something. Raises
    Invalid where nothing has begun, or the address is taken.
    """
    gather(given)

    @lru_cache(maxsize=1)
    def made(state: State) -> bytes:
        return _page(given, refresh)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                return self.send_error(HTTPStatus.NOT_FOUND)
            try:
                stats = [(path, path.stat()) for path in files(given)]
                body = made(tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in stats))
            except (Invalid, OSError) as error:  # a folder was moved away meanwhile
                body = f"<!doctype html><title>Treering</title><p>{escape(str(error))}".encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with suppress(ConnectionError):  # the browser went away
                self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            """Nothing: the terminal belongs to the address."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise Invalid(f"--port {port}: {host} cannot be served there ({reason})") from error
