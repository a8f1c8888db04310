"""Results that are kept row by row, so that a benchmark that was interrupted goes on where it stopped."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm


def run_and_keep(
    path: Path,
    fields: Sequence[str],
    keys: Sequence[str],
    cases: Iterable[tuple[object, ...]],
    run: Callable[..., Mapping[str, object]],
    show: Callable[[Mapping[str, object]], str],
) -> list[dict[str, str]]:
    """Run every case that has no row yet, one row each, and return all rows of the file.

    Args:
        path: The CSV file.
        fields: Its columns.
        keys: The columns that tell cases apart, in the order of a case.
        cases: Values of these columns, the arguments of ``run``.
        run: Makes the row of a case.
        show: The line that is printed for a row.
    """
    done = list(csv.DictReader(path.open())) if path.exists() else []
    finished = {tuple(row[key] for key in keys) for row in done}
    left = [case for case in cases if tuple(map(str, case)) not in finished]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if not done:
            writer.writeheader()
        for case in tqdm(left, desc="fits", dynamic_ncols=True):
            row = run(*case)
            writer.writerow(row)
            file.flush()
            tqdm.write(show(row))
    return list(csv.DictReader(path.open()))
