"""Hundreds of kills: python tests/soak.py --trials 200

Of each kind as many; the last line says how many there were and where they fell. A trial that
failed is named, what it left is kept, and --seed makes it again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from killing import KINDS, killing


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 at any moment, many times.")
    parser.add_argument("--trials", type=int, default=200, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="treering-soak-"))
    fell, failed = {kind: Counter[str]() for kind in options.kinds}, []
    with killing(place) as killed:
        for i in range(options.trials):
            kind, seed = (
                options.kinds[i % len(options.kinds)],
                options.seed + i // len(options.kinds),
            )
            try:
                trial = killed.trial(kind, seed)
            except Exception:  # every trial is made, whatever became of those before
                traceback.print_exc()
                failed.append(f"--kinds {kind} --seed {seed} --trials 1")
                continue
            fell[kind].update(trial.fell)
            print(
                f"{i + 1:4} of {options.trials}: {kind} {seed}: {', '.join(trial.fell)}", flush=True
            )
    if not failed:
        shutil.rmtree(place)
    for again in failed:
        print(f"FAILED: {again} ({place} is kept)")
    each = [f"{kind} {sum(n.values())} kills ({_counted(n)})" for kind, n in fell.items()]
    sound = f"{options.trials - len(failed)} of {options.trials} trials as if unbroken"
    print("; ".join([sound, *each]))
    return 1 if failed else 0


def _counted(where: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in where.most_common())


if __name__ == "__main__":
    sys.exit(main())
