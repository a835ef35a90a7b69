"""Three corpora that are found wherever Treering is installed; none is shipped with it.

english   docstrings of the standard library and of installed packages
python    their source, without docstrings and comments
cpp       the C++ headers that torch installs
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from treering.atomic import replacing

SMALLEST, LARGEST = 200, 60_000  # characters of a document: some modules are tables of data
ENOUGH = 1_500_000  # characters of a corpus
PACKAGES = ("numpy", "torch", "transformers")


def collect(folder: Path) -> dict[str, int]:
    """Write english.jsonl, python.jsonl and cpp.jsonl into the folder; documents of each."""
    corpora: dict[str, list[str]] = {"english": [], "python": [], "cpp": []}
    for path in _shuffled(_modules()):
        if all(_size(corpora[name]) >= ENOUGH for name in ("english", "python")):
            break
        for name, text in zip(("english", "python"), _parted(path), strict=True):
            _add(corpora[name], text)
    for path in _shuffled(_headers()):
        if _size(corpora["cpp"]) >= ENOUGH:
            break
        _add(corpora["cpp"], _text(path))
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in corpora.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        with replacing(folder / f"{name}.jsonl") as beside:
            beside.write_text("".join(lines), encoding="utf-8")
    return {name: len(texts) for name, texts in corpora.items()}


def _parted(path: Path) -> tuple[str, str]:
    """A module's docstrings, and its source without them; nothing where it is no Python."""
    try:
        tree = ast.parse(_text(path))
    except (SyntaxError, ValueError, RecursionError):  # templates and the like
        return "", ""
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                prose.append(found)
                node.body = node.body[1:] or [ast.Pass()]
    return "\n\n".join(prose), ast.unparse(tree)


def _modules() -> Iterator[Path]:
    """The modules of the standard library and of some packages, without tests and tables."""
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    for root in (Path(sysconfig.get_paths()["stdlib"]), *map(_package, PACKAGES)):
        found = root.rglob("*.py")
        yield from (path for path in found if not left_out & set(path.relative_to(root).parts))


def _headers() -> Iterator[Path]:
    yield from (_package("torch") / "include").rglob("*.h")


def _package(name: str) -> Path:
    """The folder of a package, which is not imported for it."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is a dependency"
    return Path(spec.origin).parent


def _shuffled(paths: Iterator[Path]) -> list[Path]:
    """In an order that depends on names alone."""
    return sorted(
        paths, key=lambda path: hashlib.sha256("/".join(path.parts[-3:]).encode()).digest()
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _add(texts: list[str], text: str) -> None:
    if SMALLEST <= len(text) <= LARGEST and _size(texts) < ENOUGH:
        texts.append(text)


def _size(texts: list[str]) -> int:
    return sum(map(len, texts))
