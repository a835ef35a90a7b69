"""The command line: exit codes, one line for what is wrong, and nothing written then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from transformers import AutoModelForCausalLM

from treering import cli, fp8, tokenizer
from treering.prepare import Options, prepare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's texts are prepared, and a store of another tokenizer lies beside them."""
    place = tiny.place(tmp_path_factory.mktemp("cli"))
    other = tokenizer.train(tiny.documents("de", 20), 290)
    other.save_pretrained(str(place / "tokenizer"))
    options = Options(quiet=True, workers=1)
    prepare([str(place / "en.jsonl")], other, str(place / "other"), options)
    tiny.write_text(place / "short.jsonl", ["so"])
    with tiny.one_thread():
        tiny.run(place / "recipe.toml", place / "finished")
    return place


def call(place: Path, *arguments: str) -> int:
    with tiny.one_thread():
        return cli.main([*arguments, "--cache", str(place / "cache")])


def run(place: Path, *arguments: str) -> int:
    return call(place, "run", str(place / "recipe.toml"), *arguments)


WRONG = {
    "sed=1": "sed = 1: unknown key; did you mean 'seed'?",
    "replay.share=1": "replay.share = 1.0: must be in [0, 1)",
    "phases.0.tokens=-64": "phases[0].tokens = -64: must be positive",
    "corpora.en.train='nowhere.txt'": "corpora.en.train = 'nowhere.txt': no such file",
    "phases.0.mixture={}": "phases[0].mixture = {}: name a corpus",
    "update.kind='reptil'": "update.kind = 'reptil'; did you mean 'reptile'?",
    "update={every=3}": "update.kind = None; known: agem, average, coso, descent",
    "update.every=0": "update.every = 0: must be at least 1",
    "update.every=2.5": "update.every = 2.5: must be int",
    "update.rate=1.5": "update.rate = 1.5: must be in [0, 1]",
    "update.rate=nan": "update.rate = nan: must be",
    "update.evry=3": "update.evry = 3: unknown key; did you mean 'every'?",
    "update.anchor='disk'": "update.anchor = 'disk': must be 'device' or 'cpu'",
    "update.start='third'": "update.start = 'third'; known: first, second",
    "update.inner='descent'": "update.inner = 'descent': must be a table",
    "update.inner={kind='x'}": "update.inner.kind = 'x'; known: agem, average, coso, descent",
    "update={kind='per_sample'}": "batch.micro = 32: update kind 'per_sample' takes one sample",
    "replay.memory={kind='reservoire'}": "memory.kind = 'reservoire'; did you mean 'reservoir'?",
    "replay.memory.samples=4": "replay.memory.samples = 4: must be at least the samples of a step",
    "replay.memory.samples=0": "replay.memory.samples = 0: must be at least 1",
    "replay.memory.over='some'": "replay.memory.over = 'some': must be 'past' or 'all'",
    "schedule.kind='cosin'": "schedule.kind = 'cosin'; did you mean 'cosine'?",
    "schedule.peak=-1": "schedule.peak = -1.0: must not be negative",
    "schedule.peak=inf": "schedule.peak = inf: must be",
    "schedule.span='week'": "schedule.span = 'week'; known: first, phase, run",
    "schedule={kind='constant'}": "schedule.peak is missing: add it to the recipe",
    "model.preset='3mm'": "model.preset = '3mm'; did you mean '3m'?",
    "model.kind='mamba'": "model.kind = 'mamba': only 'llama'",
    "model.heads=3": "model.heads = 3: width 16 must split",
    "model.mlp=0": "model.mlp = 0: must be positive",
    "model.mlp=-8": "model.mlp = -8: must be positive",
    "model={}": ": give a positive number, or model.preset",
    "model={from='nowhere/at/all'}": "model 'nowhere/at/all': no such folder",
    "tokenizer.train=100": "tokenizer.train = 100: 256 bytes and the end of text need 257",
    "tokenizer={from='no/such/folder'}": "tokenizer no/such/folder: no such folder",
    "corpora.fr.validation='short.jsonl'": "corpora.fr.validation: ",
    "corpora.fr.train='short.jsonl'": "corpora.fr.train: has not one sample of length 16 + 1",
    "length=4096,batch={tokens=4096}": "of length 4096 + 1",
}


@pytest.mark.filterwarnings("ignore:update.every")
@pytest.mark.parametrize("sets", WRONG)
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: str
) -> None:
    parts = sets.split(",") if sets.startswith("length") else [sets]
    code = run(place, "--out", str(tmp_path / "out"), *(a for p in parts for a in ("--set", p)))
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    lines = [line for line in printed.err.splitlines() if " documents" not in line]  # prepared
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("treering: ") and WRONG[sets] in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_tokenizer_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.without(place, "tokenizer")
    model = f"model={{from='{place / 'finished/model'}'}}"
    sets = ("--set", model, "--set", "corpora.en={train='other', validation='fr-held-out.jsonl'}")
    assert call(place, "run", str(recipe), "--out", str(tmp_path / "out"), *sets) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "corpora.en.train = " in lines[-1] and "made with tokenizer" in lines[-1]
    assert "with the run's tokenizer, or name that one in [tokenizer]" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_a_misspelt_method_or_model_is_told_before_a_text_is_prepared(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("update.kind='x'", "schedule.span='x'", "replay.memory.kind='x'")
    for wrong in (*methods, "model.preset='3mm'", "model.heads=3"):
        command = ["run", str(place / "recipe.toml"), "--out", str(tmp_path / "out")]
        assert cli.main([*command, "--cache", str(tmp_path / "cache"), "--set", wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_folder_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 2
    assert capsys.readouterr().err == "treering: --out is missing: name the run's folder\n"


def test_a_dry_run_writes_nothing_and_tells_what_would_be_done(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.files(place)
    assert run(place, "--dry-run", "--out", str(tmp_path / "out"), "--set", "seed=4",
               "--set", "anneal.tokens=100") == 0  # fmt: skip
    assert tiny.files(place) == before and not list(tmp_path.iterdir())
    lines = capsys.readouterr().out.splitlines()
    assert "seed = 4" in lines and "keep = 2" in lines  # resolved, with defaults
    found = [line.replace("│", " ").split() for line in lines]
    assert ["first", "25", "1,216", "384", "24.00%"] in found
    assert ["second", "25", "1,200", "400", "25.00%"] in found
    words = [line.split()[0] for line in lines if line]
    assert {"parameters", "branches", "FLOPs", "memory", "time"} <= set(words)
    assert ["epochs", "en", "0.36,", "fr", "0.36,", "de", "0.09;", "replay", "apart"] in found
    assert ["branches", "4", "steps", "more,", "annealed"] in found
    parameters = next(line.split()[1] for line in lines if line.startswith("parameters"))
    header = json.loads((place / "finished/records.jsonl").read_text().splitlines()[0])
    assert parameters == f"{header['parameters']:,}"


def test_a_dry_run_of_a_misspelt_method_says_that_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, "--dry-run", "--set", "update.evry=3") == 2
    said = capsys.readouterr()
    assert said.out == "" and "did you mean 'every'?" in said.err


def test_a_dry_run_for_no_devices_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, "--dry-run", "--devices", "0") == 2
    assert "needs 1 processes, there are 0" in capsys.readouterr().err


def test_torchrun_and_devices_that_differ_are_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run(place, "--out", str(tmp_path / "out"), "--devices", "2") == 2
    assert "--devices 2: torchrun has started 4 processes" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_a_text_is_prepared(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fp8, "find_spec", lambda name: None)
    command = ["run", str(place / "recipe.toml"), "--out", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache"), "--set", "compute.precision='fp8'"]
    assert cli.main(command) == 2
    assert "compute.precision = 'fp8': pip install 'treering[fp8]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prepares_into_the_cache_alone(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("cache", "finished"))
    before = tiny.files(copy)
    assert run(copy, "--dry-run") == 0
    after = tiny.files(copy)
    assert {name for name in after if not name.startswith("cache/")} == set(before)
    assert any(name.startswith("cache/stores/") for name in after)


def test_a_run_prints_its_verdict_and_leaves_a_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert (
        "forgetting" in printed.out and f"the model is in {tmp_path / 'out/model'}" in printed.out
    )
    assert "step      25  first" in printed.err
    tiny.assert_same_run(tmp_path / "out", place / "finished")


def test_export_writes_the_model_of_the_newest_checkpoint(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".m.1.tmp").mkdir()  # of an export that was killed
    for _ in range(2):  # an older export is replaced
        assert call(place, "export", str(place / "finished"), "--out", str(tmp_path / "m")) == 0
    assert "after step 50" in capsys.readouterr().out
    exported, kept = tiny.files(tmp_path / "m"), tiny.files(place / "finished/model")
    assert exported == kept and [path.name for path in tmp_path.iterdir()] == ["m"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m") is not None


def test_a_model_of_someone_elses_is_not_overwritten(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(place / "finished/model", tmp_path / "base")
    (base / "README.md").write_text("# A base model\n")
    before = tiny.files(base)
    assert call(place, "export", str(place / "finished"), "--out", str(base)) == 2
    assert "holds files that are no export; name another folder" in capsys.readouterr().err
    assert tiny.files(base) == before


def test_a_report_is_what_its_name_says(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "finished")
    for name, begins in (("r.md", b"#"), ("r.png", b"\x89PNG"), ("r", b"<!doctype html>")):
        assert cli.main(["report", run, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().lstrip().startswith(begins)
    capsys.readouterr()
    wrong = "--format", "html", "--out", str(tmp_path / "no.png")
    assert cli.main(["report", run, *wrong]) == 2
    assert "--format html: no.png would not be what its name says" in capsys.readouterr().err
    assert cli.main(["report", run, "--baseline", "foo", "--out", str(tmp_path / "b.html")]) == 2
    assert "--baseline foo: no such finished arm" in capsys.readouterr().err


def test_a_damaged_summary_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(place / "finished", tmp_path / "run")
    (out / "summary.json").write_text("{")
    assert call(place, "run", str(place / "recipe.toml"), "--out", str(out)) == 2
    assert "summary.json: damaged" in capsys.readouterr().err
    (out / "summary.json").unlink()
    assert call(place, "run", str(place / "recipe.toml"), "--out", str(out)) == 0
    assert json.loads((out / "summary.json").read_text())["rows"]


NOT_RUNS: dict[str, Callable[[Path], list[str]]] = {
    "is no run folder": lambda place: ["export", str(place), "--out", str(place / "x")],
    "holds files that are no export": lambda p: ["export", str(p / "finished"), "--out", str(p)],
    "name the corpora with --recipe": lambda place: ["evaluate", str(place / "finished/model")],
    "no model could be loaded": lambda p: ["evaluate", str(p), "--recipe", f"{p}/recipe.toml"],
}


@pytest.mark.parametrize("words", NOT_RUNS)
def test_a_folder_of_another_kind_is_refused_with_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    before = tiny.files(place)
    assert call(place, *NOT_RUNS[words](place)) == 2
    printed = capsys.readouterr()
    assert words in printed.err and len(printed.err.splitlines()) == 1
    assert tiny.files(place) == before


def test_a_program_of_its_own_exits_with_2_and_without_torch(tmp_path: Path) -> None:
    """A typing error in a recipe is answered before the seconds that torch takes to import."""
    script = (
        "import sys; from treering.cli import main\n"
        f"code = main(['run', {str(tmp_path / 'no.toml')!r}, '--out', 'x'])\n"
        "sys.exit(100 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("treering: recipe") and done.stderr.count("\n") == 1
    for arguments, code in (([], 2), (["--help"], 0), (["fly"], 2)):
        asked = subprocess.run([sys.executable, "-m", "treering", *arguments], capture_output=True)
        assert asked.returncode == code
