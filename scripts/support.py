"""Write the tables of the page on pipelines from the record of what was tried: _build/generated/support.md.

book/which-pipelines.md includes it, the status page is made alike.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from status import FOLDER, table

RECORD = Path("pruning_book/records/support_matrix.json")
COLUMNS = {"schedule": "schedules", "MACs": "MACs", "training": "gates", "operators": "operators", "saved": "saved"}
SIGNS = {"yes": "yes", "refused": "no", "wrong": "wrong"}


def verdict(said: str) -> str:
    """Return the first word of what a check said: yes, refused, wrong or absent."""
    return said.split(":")[0].split(" ")[0]


def page(record: dict) -> str:
    """Return the tables as Markdown."""
    data, passport = record["data"], record["passport"]
    rows, ways = data["rows"], data["ways"]
    head = ["tried", *COLUMNS.values(), "pipeline", "denoiser"]
    cells, reasons = [], []
    for row in rows:
        signs = []
        for column, what in COLUMNS.items():
            said = row["found"][column]
            signs.append(SIGNS.get(verdict(said), "-"))
            if verdict(said) in ("refused", "wrong"):
                reasons.append([row["name"], what, said.partition(": ")[2]])
        cells.append([row["name"], *signs, row["pipeline"], row["denoiser"]])
    totals = [
        [what, *(sum(verdict(row["found"][column]) == word for row in rows) for word in ("yes", "refused", "wrong"))]
        for column, what in COLUMNS.items()
    ]
    merged: dict[tuple[str, str], list[str]] = {}
    for name, what, reason in reasons:
        merged.setdefault((name, reason), []).append(what)
    beside = []
    for way, what in ways.items():
        counts = Counter(verdict(row["ways"].get(way, "absent")) for row in rows)
        beside.append([what, counts["yes"], counts["refused"], counts["wrong"], counts["absent"]])
    versions, commit = passport["versions"], passport["commit"][:9]
    return "\n\n".join(
        [
            f"## {len(rows)} pipelines",
            table(["what", "yes", "refused", "wrong"], totals),
            f"```{{dropdown}} All {len(rows)}, one by one\n{table(head, cells)}\n```",
            "## Where it does not work, and why",
            "\n".join(f"- **{name}** ({', '.join(what)}): {why}" for (name, why), what in merged.items()),
            "## Beside what else is switched on",
            "Each is tried on every pipeline that offers it, with a table of reused units.",
            table(["switched on", "yes", "refused", "wrong", "not offered"], beside),
            f"Tried on {passport['date'][:10]} with diffusers {versions['diffusers']}, torch {versions['torch']} and "
            f"transformers {versions['transformers']}, on {passport['hardware']}, at commit `{commit}`.",
            "",
        ]
    )


def write(root: Path) -> None:
    """Write support.md under `root`/_build/generated, where the book has such a record."""
    if (root / RECORD).is_file():
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "support.md").write_text(page(json.loads((root / RECORD).read_text("utf-8"))), encoding="utf-8")
