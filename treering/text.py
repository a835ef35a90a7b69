"""Documents: a path's texts in order, their split into training and validation, their digest.

    path -> files, sorted -> documents in order, each a string that UTF-8 can hold

Nothing is cleaned and nothing is cut; an empty document is a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from treering.config import Invalid
from treering.formats import ACCEPTED, Tally, kind, read, read_hub

HUB = "hf://"


def documents(
    path: str, *, field: str = "text", skip_bad: bool = False, tally: Tally | None = None
) -> Iterator[str]:
    """The documents of a file, of a folder of files, or of a hub data set `hf://OWNER/NAME`.

    A bad line is Invalid and names its file and number, or, with `skip_bad`, is counted.
    """
    tally = Tally() if tally is None else tally
    parts = (
        [read_hub(path, field)]
        if path.startswith(HUB)
        else (read(file, field, tally) for file in files(path))
    )
    for part in parts:
        for item in part:
            if isinstance(item, str):
                yield item
            elif not skip_bad:
                raise Invalid(f"{item.where}: {item.why}; correct it, or leave such out: "
                              "`treering prepare --skip-bad`")  # fmt: skip
            else:
                tally.skipped += 1
                tally.first = tally.first or f"{item.where}: {item.why}"


def limited(documents: Iterable[str], limit: int) -> Iterator[str]:
    """The first documents, `limit` bytes in all; the last of them is cut short."""
    for text in documents:
        data = text.encode()
        yield data[:limit].decode(errors="ignore")
        limit -= len(data)
        if limit <= 0:
            return


def in_validation(text: str, share: float) -> bool:
    """Whether a document falls to validation: by its text alone, whatever the order and the seed.

    Equal documents fall to one side, so that none that is measured was ever trained on.
    """
    number = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(number, "big") / 2**64 < share


def files(path: str) -> list[Path]:
    """The files that a path stands for, sorted; none for a hub data set.

    In folders, hidden files and those of other kinds are left out.
    """
    root = Path(path)
    if path.startswith(HUB):
        return []
    if root.is_file():
        if kind(root) is None:
            raise Invalid(f"{path}: not a text; name a {ACCEPTED}, or a folder of them")
        return [root]
    if not root.is_dir():
        raise Invalid(f"{path}: no such file or folder; correct the path")
    found = [file for file in _inside(root) if kind(file)]
    if not found:
        raise Invalid(f"{path}: the folder holds no text; name one with a {ACCEPTED}")
    return found


def digest(path: str) -> str:
    """A name for a path's contents, wherever they lie: of files the bytes, of the hub a commit."""
    total = hashlib.sha256()
    root, found = Path(path), files(path)
    if path.startswith(HUB):
        parts = urlsplit(path)
        root = Path(parts.path)
        found = [] if parts.netloc else _inside(root)
        total.update(f"{_commit(path) if parts.netloc else ''}?{parts.query}\n".encode())
    for file in found:
        name = file.name if file == root else file.relative_to(root).as_posix()
        with open(file, "rb") as data:
            total.update(f"{hashlib.file_digest(data, 'sha256').hexdigest()} {name}\n".encode())
    return total.hexdigest()


def _inside(root: Path) -> list[Path]:
    """The files below a folder, sorted, without hidden ones."""
    below = sorted(file.relative_to(root) for file in root.rglob("*") if file.is_file())
    return [root / file for file in below if not any(part[0] == "." for part in file.parts)]


def _commit(path: str) -> str:
    """The commit at which a hub data set stands now."""
    parts = urlsplit(path)
    try:
        import huggingface_hub

        return str(huggingface_hub.HfApi().dataset_info(parts.netloc + parts.path).sha)
    except Exception as error:  # not installed, no such name, no network
        raise Invalid(f"{path}: cannot be found; correct it, or prepare it to a store") from error
