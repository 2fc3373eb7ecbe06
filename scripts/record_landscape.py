"""From finished or running searches to one small file that optimizers can be compared on without models.

python scripts/record_landscape.py RUN... OUT

Every RUN must search the same genes with the same models, tasks and documents. OUT is a name (then the file goes to
scripts/recordings/) or a path ending in .npz. Candidates that failed are counted and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from landscape_recording import (
    FOLDER,
    RecordedTask,
    Recording,
    is_binary,
    joined,
    problems_of,
    save_recording,
)

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.store.events import Evaluated, Failed
from evomerge.store.manifest import load_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state


def read_run(path: Path) -> Recording:
    """What one run has evaluated so far.

    Raises:
        UserError: no run, or a damaged one.
        InvalidInput: no candidate has scores for every document of every task.
    """
    run_dir = RunDir.open(path)
    state = read_state(run_dir.event_log().read())
    manifest = load_manifest(run_dir.manifest_path)
    store = run_dir.score_store()
    genotypes, tables = [], []
    for record in state.candidates:
        if isinstance(record.outcome, Evaluated) and record.outcome.scores_ref:
            genotypes.append(record.asked.array)
            tables.append(store.load(record.outcome.scores_ref))
    if state.started is None or not tables:
        raise InvalidInput([Problem(str(path), "has no evaluated candidate with per-document scores yet")])
    names = [table.objective for table in tables[0]]
    ids = [table.document_ids for table in tables[0]]
    expected = [objective.name for objective in state.started.objectives]
    if names != expected:
        raise InvalidInput(
            [Problem(str(path), f"has per-document scores of {names}, expected all objectives, {expected}")]
        )
    if any([table.document_ids for table in row] != ids for row in tables):
        raise InvalidInput(
            [Problem(str(path), "scored different documents for different candidates; record full ones")]
        )
    scores = tuple(np.array([row[index].values for row in tables]) for index in range(len(names)))
    tasks = tuple(
        RecordedTask(objective.name, ids[index], objective.higher_is_better, is_binary(scores[index]))
        for index, objective in enumerate(state.started.objectives)
    )
    about = {
        "name": state.started.name,
        "experiment_fingerprint": state.started.experiment_fingerprint,
        "evomerge": state.started.evomerge,
        "seed": state.started.seeds.get("run", 0),
        "optimizer": str(manifest.experiment.get("optimizer", {}).get("name", "")),
        "evaluated": len(tables),
        "failed": sum(isinstance(record.outcome, Failed) for record in state.candidates),
    }
    provenance = {"runs": [about], "models": dict(manifest.models)}
    return joined([Recording(state.started.genes, tasks, np.array(genotypes), scores, provenance)])


def record(paths: Sequence[Path], out: Path) -> Recording:
    """Write what the runs have evaluated so far to one file.

    Raises:
        UserError: see ``read_run``; the runs do not fit together; the file cannot be written.
    """
    recording = joined([read_run(path) for path in paths])
    if problems := [Problem(str(paths[0]), message) for message in problems_of(recording)]:
        raise InvalidInput(problems)
    save_recording(out, recording)
    return recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("out", metavar="OUT")
    options = parser.parse_args()
    out = Path(options.out) if options.out.endswith(".npz") else FOLDER / f"{options.out}.npz"
    try:
        found = record(options.runs, out)
    except UserError as error:
        sys.exit(str(error))
    documents = ", ".join(f"{task.name} {len(task.document_ids)}" for task in found.tasks)
    print(f"{out}: {len(found.genotypes)} candidates of {len(found.genes)} genes; documents: {documents}; "
          f"{out.stat().st_size / 1000:.0f} kB")  # fmt: skip


if __name__ == "__main__":
    main()
