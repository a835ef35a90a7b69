"""Collects text that every machine with Python holds: `python recipes/collect.py FOLDER`.

english.jsonl has the docstrings of the standard library, one module a document, and python.jsonl
its source without docstrings and comments. What is there already is left alone.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from pathlib import Path

LARGEST = 100_000  # characters of a document: a few modules are tables of data


def texts(path: Path) -> tuple[str, str]:
    """A module's docstrings, and its source without them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                prose.append(found)
                node.body = node.body[1:] or [ast.Pass()]
    return "\n\n".join(prose), ast.unparse(tree)


def modules() -> list[Path]:
    """The standard library's modules in a fixed order, without its tests and generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    found = root.rglob("*.py")
    return sorted(p for p in found if not left_out & set(p.relative_to(root).parts))


def collect(folder: Path) -> None:
    """Write both corpora into the folder."""
    targets = {"english": folder / "english.jsonl", "python": folder / "python.jsonl"}
    if all(target.exists() for target in targets.values()):
        return
    corpora: dict[str, list[str]] = {name: [] for name in targets}
    for path in modules():
        try:
            prose, source = texts(path)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and the like are no Python of this version
        for name, text in (("english", prose), ("python", source)):
            if 200 <= len(text) <= LARGEST:
                corpora[name].append(text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in corpora[name]]
        beside = target.with_suffix(".tmp")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.rename(target)
        megabytes = target.stat().st_size / 1e6
        print(f"{target}: {len(lines)} documents, {megabytes:.1f} MB")


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
