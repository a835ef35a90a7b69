"""The house stands as docs/design.md draws it: who imports whom, and how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "treering"
FILES = sorted(HOUSE.rglob("*.py"))
SHELF = [file for file in FILES if "methods" in file.parts]

# A file imports only from lower lines, or from its own folder.
RANKS = (
    "schema atomic shape spread",
    "tables",
    "rng batch records config interruption grid speed shapes",
    "protocols formats segments",
    "position ledger sidecar roles predictions wrapping",
    "shards",
    "store mesh guard text tokenizer plan optimizer",
    "weights checkpoint folder bpe",
    "pretrained",
    "model identity attention",
    "fp8 groups methods",
    "surgery",
    "forward",
    "asked lengths stream learner encode writer analysis",
    "saving",
    "prepare loop ranks evaluate report probe downstream trackers",
    "cache journal pipeline objective adapter",
    "together",
    "shelf",
    "build",
    "header scoring branch consolidation",
    "outcome footprint launch verify combining doubling",
    "merge",
    "estimate",
    "extension piloting",
    "training engines",
    "study",
    "conduct",
    "demo",
    "treering",
    "verbs_pilots verbs_laws",
    "verbs verbs_plan verbs_predict workshop",
    "planner",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, line in enumerate(RANKS) for name in line.split()}
LINES = {"tables.py": 380}  # the recipe's one page
# Who may import a method.
OPEN_SHELF = ("shelf", "objective", "asked", "adapter", "surgery", "build", "methods")
LIGHT = (
    "schema tables shape rng batch records config ledger protocols plan store stream analysis "
    "report verbs verbs_plan verbs_predict verbs_laws verbs_pilots planner workshop cli"
)


def imports(source: str) -> Iterator[str]:
    """The modules of the house that a source imports anywhere, as dotted names without treering."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (n.removeprefix("treering.") for n in names if n.split(".")[0] == "treering")


def faults(where: str, source: str) -> list[str]:
    """What a module (a dotted name without treering) imports although it must not."""
    unit, *inner = where.split(".")
    found = []
    for name in imports(source):
        target, *rest = name.split(".")
        target = target if target in RANK else "treering"
        if target == "methods" and unit not in OPEN_SHELF:
            found.append(f"{where} takes {name} from the shelf")
        elif target == unit == "methods" and inner and rest[:1] != inner[:1]:
            found.append(f"{where} imports {name}, another kind of method")
        elif RANK[target] >= RANK[unit] and target != unit:
            found.append(f"{where} imports {name} of no lower rank")
    return found


def heavy(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """torch and transformers where a module's import would run them."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from heavy(node.orelse)
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in ("torch", "transformers"))
        yield from heavy(
            [child for child in ast.iter_child_nodes(node) if hasattr(child, "lineno")]
        )


def name_of(file: Path) -> str:
    parts = file.relative_to(HOUSE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "treering"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_from_lower_ranks_only(file: Path) -> None:
    assert name_of(file).split(".")[0] in RANK, f"{name_of(file)}: give it a rank here"
    assert faults(name_of(file), file.read_text()) == []


def test_a_forbidden_import_is_seen() -> None:
    assert faults("store", "from treering import run, stream") == [
        "store imports run of no lower rank",
        "store imports stream of no lower rank",
    ]
    assert faults("store", "def f():\n    import treering.cli") != []
    assert faults("loop", "from treering.methods.updates import Descent") != []
    assert faults("methods.updates.x", "from treering.methods import memories") != []
    assert faults("methods.updates.x", "from treering.methods.memories.y import Z") != []
    assert faults("methods.updates.x", "from treering.methods.updates.y import Z") == []
    assert faults("store", "import numpy\nfrom treering.config import Invalid") == []


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f).split(".")[0] in LIGHT.split()])
def test_what_plans_and_what_analyses_does_not_import_torch(file: Path) -> None:
    assert list(heavy(ast.parse(file.read_text()).body)) == []


def test_an_import_of_torch_is_seen() -> None:
    seen = "try:\n    import torch.nn\nexcept ImportError:\n    from transformers import x"
    assert list(heavy(ast.parse(seen).body)) == ["torch.nn", "transformers"]
    unseen = "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch"
    assert list(heavy(ast.parse(unseen).body)) == []


def test_importing_the_light_modules_does_not_load_torch() -> None:
    names = [name_of(f) for f in FILES if name_of(f).split(".")[0] in LIGHT.split()]
    lines = [f"import treering.{name}" for name in names]
    lines.append("import sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=HOUSE.parent, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file: Path) -> None:
    source = file.read_text()
    assert len(source.splitlines()) <= (120 if file in SHELF else LINES.get(file.name, 250))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in given if argument.arg != "self"]
            assert len(names) <= 7, f"{node.name} takes too much"


def unpickled(source: str) -> list[str]:
    """Where a source opens what may be a pickle, which runs what its author likes."""
    safe = {"np.load": "allow_pickle=False", "torch.load": "weights_only=True"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "")]
            found += [name for name in names if name in ("pickle", "dill", "joblib", "shelve")]
        elif isinstance(node, ast.Call):
            call, given = ast.unparse(node.func), [ast.unparse(word) for word in node.keywords]
            found += [call] if call in safe and safe[call] not in given else []
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_is_unpickled(file: Path) -> None:
    """But for a checkpoint's index, which torch opens after its digest agrees."""
    assert unpickled(file.read_text()) == []


def test_an_opened_pickle_is_seen() -> None:
    assert unpickled("def f():\n    from pickle import loads") == ["pickle"]
    assert unpickled("import pickle") == ["pickle"]
    assert unpickled("np.load(path, mmap_mode='r')") == ["np.load"]
    assert unpickled("torch.load(path, weights_only=False)") == ["torch.load"]
    assert unpickled("torch.load(path, weights_only=True); np.load(x, allow_pickle=False)") == []


def test_the_path_is_read_in_one_go() -> None:
    path = [HOUSE / "training.py", HOUSE / "loop.py"]
    assert sum(len(file.read_text().splitlines()) for file in path) <= 250
