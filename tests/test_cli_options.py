"""Each option of the command line reaches what it is for: by what it changes, not by its name."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
from test_store import everything
from transformers import AutoTokenizer

from treering import cli, tokenizer
from treering.demo import show
from treering.store import open_store

STEPS = ("update.every=2", "schedule.warmup=0.0", "phases.0.tokens=128", "phases.1.tokens=128")
SHORT = [part for one in STEPS for part in ("--set", one)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.place(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def elsewhere(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe far from its texts, and a study of it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(place / "recipe.toml", folder / "recipe.toml")
    (folder / "study.toml").write_text('base = "recipe.toml"\n[grid]\nseed = [3, 4]\n[arms.a]\n')
    return folder


def call(place: Path, *arguments: object) -> int:
    with tiny.one_thread():
        return cli.main([*map(str, arguments), "--cache", str(place / "cache")])


@pytest.fixture(scope="module")
def run(place: Path, elsewhere: Path) -> Path:
    """Two steps of each phase, the texts named by --data."""
    out = elsewhere / "run"
    assert call(place, "run", elsewhere / "recipe.toml", "--out", out, *SHORT) == 2
    given = ("--data", place, "--out", out, *SHORT)
    assert call(place, "run", elsewhere / "recipe.toml", *given) == 0
    return out


def test_fresh_sets_the_old_run_aside(
    place: Path, elsewhere: Path, run: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    given = ("run", elsewhere / "recipe.toml", "--data", place, "--out", out, *SHORT)
    other = ("--set", "seed=5")
    assert call(place, *given, *other) == 2 and not (tmp_path / "run.old-1").exists()
    assert call(place, *given, *other, "--fresh") == 0
    assert tiny.files(tmp_path / "run.old-1") == tiny.files(run)
    assert tiny.story(out) != tiny.story(run)


def test_a_jump_of_the_rate_must_be_accepted(
    place: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    third = ("{name='first', tokens=128, mixture={en=1.0}}, {name='second', tokens=128, "
             "mixture={fr=2.0, de=1.0}}, {name='third', tokens=128, mixture={de=1.0}}")  # fmt: skip
    longer = [*SHORT[:4], "--set", f"phases=[{third}]"]
    given = ("run", place / "recipe.toml", "--out", out, *longer)
    assert call(place, *given) == 2
    assert "--accept-jump" in capsys.readouterr().err
    assert call(place, *given, "--accept-jump") == 0
    assert len([r for r in tiny.story(out) if r["kind"] == "step"]) == 6


def test_evaluate_finds_the_texts_of_a_recipe_that_lies_elsewhere(
    place: Path, elsewhere: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("evaluate", run, "--recipe", elsewhere / "recipe.toml", "--json")
    assert call(place, *given) == 2
    capsys.readouterr()
    assert call(place, *given, "--data", place) == 0
    found = json.loads(capsys.readouterr().out)
    ends = [r for r in tiny.story(run, ("score",)) if r["step"] == 4]
    assert {name: score["loss"] for name, score in found.items()} == {
        record["corpus"]: record["loss"] for record in ends
    }


def test_a_study_finds_the_texts_of_its_base(
    place: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("study", elsewhere / "study.toml", "--out", tmp_path / "out", "--list")
    assert call(place, *given) == 2
    assert call(place, *given, "--data", place) == 0
    assert capsys.readouterr().out.split() == ["0", "a-seed3", "1", "a-seed4"]


def test_prepare_takes_a_field_a_share_bad_lines_and_a_first_token(tmp_path: Path) -> None:
    words = tokenizer.train(tiny.documents("en", 20), 290)
    words.bos_token = words.eos_token
    words.save_pretrained(str(tmp_path / "words"))
    texts = [json.dumps({"body": text}) for text in tiny.documents("en", 20)]
    (tmp_path / "in.jsonl").write_text("\n".join([*texts[:10], "{", *texts[10:]]) + "\n")
    given = ["prepare", str(tmp_path / "in.jsonl"), "--tokenizer", str(tmp_path / "words"),
             "--out", str(tmp_path / "out"), "--workers", "1", "--validation", "0.3",
             "--bos"]  # fmt: skip
    for without in (["--skip-bad"], ["--field", "body"]):
        assert cli.main([*given, *without]) == 2
    assert cli.main([*given, "--field", "body", "--skip-bad"]) == 0
    train, held_out = (everything(open_store(tmp_path / n)) for n in ("out", "out-validation"))
    end = words.eos_token_id
    assert (train + held_out).count(end) == 2 * 20 and held_out.count(end) > 0
    assert train[0] == train[-1] == held_out[0] == held_out[-1] == end


def test_prepare_takes_a_file_of_held_out_text(tmp_path: Path) -> None:
    tokenizer.train(tiny.documents("en", 20), 290).save_pretrained(str(tmp_path / "words"))
    for name, count in (("in", 9), ("held", 4)):
        tiny.write_text(tmp_path / f"{name}.jsonl", tiny.documents("en", count, name))
    given = ["prepare", tmp_path / "in.jsonl", "--tokenizer", tmp_path / "words", "--out",
             tmp_path / "out", "--validation", tmp_path / "held.jsonl"]  # fmt: skip
    assert cli.main([*map(str, given)]) == 0
    end = AutoTokenizer.from_pretrained(tmp_path / "words").eos_token_id
    found = (everything(open_store(tmp_path / name)) for name in ("out", "out-validation"))
    assert [tokens.count(end) for tokens in found] == [9, 4]


def test_extend_tokenizer_takes_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.train(tiny.documents("en", 20), 290).save_pretrained(str(tmp_path / "words"))
    texts = [json.dumps({"body": text}) for text in tiny.documents("fr", 60)]
    (tmp_path / "in.jsonl").write_text("\n".join(texts) + "\n")
    given = ["extend-tokenizer", str(tmp_path / "words"), "--corpus", str(tmp_path / "in.jsonl"),
             "--add", "8", "--out", str(tmp_path / "more"), "--json"]  # fmt: skip
    assert cli.main(given) == 2
    capsys.readouterr()
    assert cli.main([*given, "--field", "body"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["tokens"] < found["before"]["tokens"]


def test_watch_serves_where_it_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = []

    def once(self: ThreadingHTTPServer) -> None:
        at = "http://{}:{}/".format(*self.server_address[:2])

        def ask() -> None:
            with urllib.request.urlopen(at) as answer:
                pages.append((at, answer.read().decode()))

        asking = threading.Thread(target=ask)
        asking.start()
        self.handle_request()
        asking.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", once)
    given = ["watch", str(run), "--host", "127.0.0.2", "--port", "0", "--refresh", "7"]
    assert cli.main(given) == 0
    ((at, page),) = pages
    assert at.startswith("http://127.0.0.2:") and at in capsys.readouterr().out
    assert '<meta http-equiv="refresh" content="7">' in page


def test_demo_is_given_its_folder_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(show, "demo", lambda out, _, cache: asked.append((out, cache)) or 3)
    given = ["demo", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert cli.main(given) == 3
    assert asked == [(tmp_path / "out", str(tmp_path / "cache"))]
