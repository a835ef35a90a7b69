"""`treering watch`: the report over HTTP on this machine, renewed as runs go on; nothing else."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded

from treering.config import Invalid
from treering.report.watch import server

VALUES = [[9.0, 9.0, 9.0], [4.0, 8.0, 9.5], [6.0, 3.5, 9.0], [7.0, 5.5, 4.5]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [json.dumps(record) + "\n" for record in recorded.cut(recorded.run(VALUES), 14)]
    (tmp_path / "study/runs/seq").mkdir(parents=True)
    (tmp_path / "study/runs/seq/records.jsonl").write_text("".join(lines))
    return tmp_path / "study/runs/seq"


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    with server([str(run.parents[1])], host="127.0.0.1", port=0, refresh=7) as made:
        assert made.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        return str(answer.read().decode())


def test_the_page_grows_with_the_run(address: str, run: Path) -> None:
    first = get(address + "/")
    assert '<meta http-equiv="refresh" content="7">' in first and "3.500" not in first
    whole = [json.dumps(record) + "\n" for record in recorded.run(VALUES)]
    (run / "records.jsonl").write_text("".join(whole))
    assert "3.500" in get(address + "/")


def test_a_port_that_cannot_be_is_refused(run: Path) -> None:
    with pytest.raises(Invalid, match=r"--port 70000: 127.0.0.1 cannot be served there \("):
        server([str(run)], host="127.0.0.1", port=70000, refresh=7)


def test_nothing_else_is_served(address: str) -> None:
    for path in ("/records.jsonl", "/../seq/records.jsonl", "/x"):
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            get(address + path)
        error.value.close()
    asked = urllib.request.Request(address + "/", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501") as error:
        urllib.request.urlopen(asked, timeout=30)
    error.value.close()


def test_a_run_that_is_moved_away_meanwhile_is_said_to_be(address: str, run: Path) -> None:
    run.parents[1].rename(run.parents[2] / "elsewhere")
    assert "is no run folder" in get(address + "/")


def test_a_port_that_is_taken_is_named(address: str, run: Path) -> None:
    port = int(address.rsplit(":", 1)[1])
    with pytest.raises(Invalid, match=f"--port {port}: 127.0.0.1 cannot be served there"):
        server([str(run)], host="127.0.0.1", port=port, refresh=7)
