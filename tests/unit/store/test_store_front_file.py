import json

import pytest

from evomerge.errors import UserError
from evomerge.store.front_file import Front, FrontEntry, read_front, write_best_recipe, write_front
from evomerge.store.run_dir import RunDir
from evomerge.terms import Objective


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "run")


def make_front() -> Front:
    objectives = (Objective("accuracy"), Objective("perplexity", higher_is_better=False, weight=0.1))
    entries = (
        FrontEntry(3, "ab", 1, (0.1 + 0.2, -12.5), {"maths/acc,none": 0.3}, "method: ties\n"),
        FrontEntry(0, "cd", 0, (0.25, -0.0)),
    )
    return Front(objectives, entries, 1, 16, best=3, hypervolume=5.5, reference_point=(0.0, -30.0))


def test_front_round_trip_in_natural_direction(run_dir):
    assert read_front(run_dir) is None
    write_front(run_dir, make_front())
    assert read_front(run_dir) == make_front()
    value = json.loads(run_dir.front_path.read_text())
    assert value["front"][0]["values"] == {"accuracy": 0.1 + 0.2, "perplexity": 12.5}


def test_a_damaged_front_is_a_user_error(run_dir):
    write_front(run_dir, make_front())
    whole = run_dir.front_path.read_text()
    for text in (whole[:50], "{}", whole.replace('"v": 1', '"v": 9')):
        run_dir.front_path.write_text(text)
        with pytest.raises(UserError, match=r"front\.json"):
            read_front(run_dir)


def test_best_recipe_is_replaced_only_when_it_changes(run_dir):
    write_best_recipe(run_dir, "method: ties\n", ("candidate 3", "accuracy 0.3"))
    assert run_dir.best_recipe_path.read_text() == "# candidate 3\n# accuracy 0.3\nmethod: ties\n"
    inode = run_dir.best_recipe_path.stat().st_ino
    write_best_recipe(run_dir, "method: ties\n", ("candidate 3", "accuracy 0.3"))
    assert run_dir.best_recipe_path.stat().st_ino == inode
    write_best_recipe(run_dir, "method: linear\n")
    assert run_dir.best_recipe_path.read_text() == "method: linear\n"
