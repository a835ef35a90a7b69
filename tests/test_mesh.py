"""Two ranks are one: the same plan, the same weights to rounding, checkpoints for one another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import on_ranks
import pytest
import tiny
import torch
from killing import half_written
from safetensors.numpy import load_file
from test_model import KINDS
from tiny import STEPS, Forks, assert_same_run, kill_after_step, story
from transformers import AutoModelForCausalLM

from treering import build, config, records

CLOSE = 1e-5  # of fp32 sums in another order, after 50 steps; norms differ more
ROUNDED = ("loss", "fresh_loss", "replayed_loss", "grad_norm", "bits_per_byte", "dot", "cosine",
           "earlier_cosine", "fresh_norm", "earlier_norm", "penalty")  # fmt: skip


@pytest.fixture(scope="module")
def two(forks: Forks) -> Path:
    out = forks.place / "two"
    code, log = forks.run(out, ranks=2)
    assert code == 0, log
    return out


def assert_same_to_rounding(
    out: Path, other: Path, least: int = STEPS, close: float = CLOSE
) -> None:
    """The same steps of the same samples; losses, norms and weights to rounding."""
    found, wanted = story(out), story(other)
    assert len(found) == len(wanted) and len(found) > least
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name in ROUNDED and value is not None:
                near = 100 * close if name == "grad_norm" else close
                assert value == pytest.approx(b[name], rel=near, abs=near)
            else:
                assert value == b[name], name
    weights, others = (
        load_file(out / "model/model.safetensors"),
        load_file(other / "model/model.safetensors"),
    )
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, others[name], atol=close)


def test_two_ranks_do_what_one_does(unbroken: Path, two: Path) -> None:
    """MER over a reservoir in fp32: replay, Reptile, clipping, both phases, held-out losses."""
    assert_same_to_rounding(two, unbroken)
    header = next(record for record in records.read(two) if record["kind"] == "header")
    assert header["hardware"]["processes"] == 2
    windows = [record for record in records.read(two) if record["kind"] == "ranks"]
    assert windows and all(min(w["computed"]) > 0 and len(w["memory"]) == 2 for w in windows)


SHORT = ("phases.0.tokens=512", "phases.1.tokens=512")


@pytest.mark.parametrize("attention", ["causal", "document"])
def test_compiled_blocks_on_two_ranks_do_what_one_does(
    forks: Forks, tmp_path: Path, attention: str
) -> None:
    """Each block a graph of its own, and the loss in chunks another."""
    sets = [f"--set={one}" for one in (*SHORT, f"model.attention='{attention}'")]
    for ranks, compiled in ((1, "false"), (2, "true")):
        out = tmp_path / str(ranks)
        code, log = forks.run(out, *sets, f"--set=compute.compile={compiled}", ranks=ranks)
        assert code == 0, log
    assert_same_to_rounding(tmp_path / "2", tmp_path / "1", least=12, close=1e-4)


def test_two_ranks_in_bf16_are_near_one(forks: Forks, tmp_path: Path) -> None:
    """Gathered in bf16: the same samples, losses within its rounding (3 digits)."""
    sets = [f"--set={one}" for one in (*SHORT, "compute.precision='bf16'")]
    for ranks in (1, 2):
        code, log = forks.run(tmp_path / str(ranks), *sets, ranks=ranks)
        assert code == 0, log
    one, two = ([r for r in story(tmp_path / str(n)) if r["kind"] == "step"] for n in (1, 2))
    assert [r["replayed"] for r in one] == [r["replayed"] for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=5e-3)


COPIES = "--set=mesh.replicate=2"


@pytest.mark.parametrize(
    ("before", "after"),
    [((2,), (1,)), ((1,), (2,)), ((2,), (2,)), ((2, COPIES), (2,)), ((2,), (2, COPIES))],
)
def test_a_killed_run_goes_on_with_another_number_of_ranks_or_another_mesh(
    forks: Forks, unbroken: Path, tmp_path: Path, before: Any, after: Any
) -> None:
    """From the checkpoint after step 14, within Reptile's cycle, the reservoir as it was."""
    out = tmp_path / "run"
    kill_after_step(forks.start(out, *before[1:], ranks=before[0]), out, 20)
    code, log = forks.run(out, *after[1:], ranks=after[0])
    assert code == 0, log
    assert "resuming after step 14 " in log or "resuming after step 21 " in log
    assert_same_to_rounding(out, unbroken)


def test_a_rank_killed_within_a_save_loses_nothing(forks: Forks, two: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "run", 0
    for rank in (1, 0, 1):
        since, sitting = time.time_ns(), forks.start(out, ranks=2)
        wait_for_half_written(out, since)
        for pid in (sitting.pids[rank], sitting.pids[1 - rank]):  # torchrun ends the other
            os.kill(pid, signal.SIGKILL)
        sitting.codes()
        found += bool(half_written(out, since))
    code, log = forks.run(out, ranks=2)
    assert code == 0, log
    assert found >= 2, "not two kills fell into a save"
    assert_same_run(out, two)


def wait_for_half_written(out: Path, since: int) -> None:
    """Return when both ranks write a checkpoint of this sitting, or time is over."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        saves = (out / "checkpoints" / name for name in half_written(out, since))
        if any((save / "__1_0.distcp").exists() for save in saves):
            return


VARIED = {
    "recomputed": ("compute.recompute='full'", "guard.spike=6.0",
                   "schedule={kind='wsd', peak=0.01, warmup=0.1, span='phase'}"),
    "roles": ("objective.normalize='weights'", "objective.replayed=0.5", "replay.budget='fresh'",
              "replay.memory={kind='everything', over='past'}"),
    "balanced": ("replay.budget='batch'", "replay.memory={kind='balanced', over='past'}",
                 "schedule={kind='infinite', peak=0.01, warmup=0.1}"),
    "replicated": ("mesh.replicate=2", "checkpoint.every_minutes=1e-9"),
    "rows that do not divide": ("batch.tokens=48", "batch.micro=16"),
    "one row for two ranks": ("batch.tokens=16", "batch.micro=16", "replay.share=0.0"),
    "online": ("update={kind='per_sample'}", "batch.micro=16"),
    "averages": ("update={kind='average', decays=[0.5, 0.9]}",),
    "latest": ("update={kind='latest', every=2, last=3, snapshots='cpu'}",),
    "diloco": ("update={kind='outer', every=3, rate=0.7, optimizer='nesterov', momentum=0.9}",),
    "outer adam": ("update={kind='outer', every=3, rate=0.01, optimizer='adam', anchor='cpu'}",),
    "agem": ("update={kind='agem'}",),
    "gem": ("update={kind='gem', strength=0.1}",),
    "groups": ("optimizer.groups=[{match='embeddings', rate=0}, {match='norms', rate=0.1}]",),
    "layers": ("optimizer.groups=[{match='layers', rate=0.1}]",),
    "probe": ("probe.every=5",),
    "sgd, reset": ("optimizer.kind='sgd'", "optimizer.at_phase='reset'"),
    "annealed branches": ("anneal={tokens=128, at={second=[0.5]}}",
                          "optimizer.at_phase='reset-momentum'"),
    "nested": ("update={kind='reptile', every=3, rate=0.5, anchor='cpu', inner={kind='reptile', "
               "every=2, rate=0.3}}",),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIED)
def test_two_ranks_do_what_one_does_whatever_is_asked(
    forks: Forks, tmp_path: Path, name: str
) -> None:
    short = [f"--set={key}" for key in (*VARIED[name], "phases.0.tokens=640",
                                       "phases.1.tokens=640")]  # fmt: skip
    alone = [key for key in short if "mesh" not in key]
    for ranks, out, sets in ((1, "one", alone), (2, "two", short)):
        code, log = forks.run(tmp_path / out, *sets, ranks=ranks)
        assert code == 0, log
    if name == "replicated":  # all of the steps, but that the first waits for an answer
        saved = [r["step"] for r in records.read(tmp_path / "two") if r["kind"] == "checkpoint"]
        assert saved == list(range(2, 21))
    for run in ("", *(f"annealed/{path.name}" for path in tmp_path.glob("one/annealed/*"))):
        two, one = tmp_path / "two" / run, tmp_path / "one" / run
        assert_same_to_rounding(two, one, least=15, close=5 * CLOSE)


def test_processes_that_do_not_make_up_the_mesh_are_refused(forks: Forks, tmp_path: Path) -> None:
    sitting = forks.start(tmp_path / "run", "--set=mesh.replicate=3", ranks=2)
    assert sitting.codes() == [2, 2]
    assert "mesh = { replicate = 3, shard = 1 }: needs 3 processes" in sitting.log.read_text()
    assert not (tmp_path / "run").exists()


def test_what_rank_0_refuses_ends_the_others_quietly(forks: Forks, two: Path) -> None:
    before = tiny.files(two)
    sitting = forks.start(two, "--set=seed=2", ranks=2)
    assert sitting.codes() == [2, 1]
    assert "the recipe changed: seed: 1 -> 2" in sitting.log.read_text()
    assert tiny.files(two) == before


@pytest.fixture(scope="module")
def program(place: Path) -> subprocess.CompletedProcess[str]:
    """on_ranks.py by torchrun, in a place with pretrained models of several kinds, in bf16."""
    recipe = config.load(place / "recipe.toml")
    words = build.data(recipe, place / "cache").tokenizer
    for name, settings in KINDS.items():
        torch.manual_seed(3)
        made = AutoModelForCausalLM.from_config(settings()).to(torch.bfloat16)
        made.save_pretrained(place / name, max_shard_size="8KB")
        words.save_pretrained(str(place / name))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", on_ranks.__file__, str(place)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, timeout=300, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(400)  # the fixture is two processes and six families
def test_weights_are_read_by_rows_written_by_files_and_never_gathered_to_be_changed(
    program: subprocess.CompletedProcess[str],
) -> None:
    """on_ranks.py: evaluation, inner products, loading, writing."""
    assert program.returncode == 0, program.stderr


@pytest.mark.timeout(400)  # the fixture is two processes and six families
@pytest.mark.parametrize("kind", on_ranks.CONTINUED)
def test_two_ranks_continue_a_pretrained_model_as_one_does(
    program: subprocess.CompletedProcess[str], place: Path, tmp_path: Path, kind: str
) -> None:
    tiny.run(
        place / "recipe.toml", tmp_path, on_ranks.begin_with(place, kind), "phases.0.tokens=640"
    )
    # GPT-2's keys have biases without gradient: Adam makes steps of the rounding alone.
    assert_same_to_rounding(place / f"two-{kind}", tmp_path, least=30, close=5 * CLOSE)
    said = f"{kind}': its files must be converted" in program.stderr
    assert said == (kind == on_ranks.CONVERTED)


def test_devices_are_torchrun(forks: Forks, two: Path, tmp_path: Path) -> None:
    """`--devices 2` from a shell; a mesh that does not fit is told once."""
    command = [sys.executable, "-m", "treering", "run", str(forks.place / "recipe.toml")]
    command += ["--out", str(tmp_path / "run"), "--cache", str(forks.place / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for more, code in ((["--dev", "2", "--set=mesh.shard=3"], 2), (["--devices=2"], 0)):
        done = subprocess.run(
            [*command, *more], env=environment, timeout=120,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert done.stderr.count("needs 3 processes") == (code == 2)
    assert done.stdout.count("the model is in") == 1
    assert_same_run(tmp_path / "run", two)
