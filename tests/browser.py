"""A page as headless Chromium shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",  # which needs rights that a test does not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    *(f"--disable-{what}" for what in ("quic", "sync", "background-networking")),
    "--disable-component-update",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--dump-dom",
)


def chromium() -> str | None:
    """Its command, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@dataclass(frozen=True)
class Shown:
    """The page after its scripts have run: markup, and what they wrote to the console."""

    markup: str
    console: list[str]

    @property
    def charts(self) -> list[str]:
        """Of each chart whether it was drawn: "yes", "no", or nothing at all."""
        found = re.findall(r'<div class="chart(?: [^"]*)?"([^>]*)>', self.markup)
        return ["".join(re.findall(r'data-drawn="(\w+)"', attributes)) for attributes in found]

    @property
    def drawings(self) -> int:
        """Vega's drawings with a line in them, or with bars: not empty frames."""
        return len(re.findall(r'<svg[^>]*class="marks"', self.markup))


def show(page: Path) -> Shown:
    """Open a file; local addresses alone."""
    browser = chromium()
    assert browser is not None
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={profile}", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"HOME": profile},
            check=True,
        )
    return Shown(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


class Tables(HTMLParser):
    """The tables of a page's sections: `of["matrix"]` is a list of tables, each of rows of text.
    `tags` counts the elements, by name."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.of: dict[str, list[list[list[str]]]] = {}
        self.tags: dict[str, int] = {}
        self._section, self._cell = "", False
        self.feed(markup)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag == "section":
            self._section = str(dict(attributes).get("id"))
        tables = self.of.setdefault(self._section, [])
        if tag == "table":
            tables.append([])
        elif tag == "tr":
            tables[-1].append([])
        elif tag in ("td", "th"):
            tables[-1][-1].append("")
            self._cell = True
        elif tag == "small" and self._cell:
            tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.of[self._section][-1][-1][-1] += data
