"""A model whose blocks were shuffled: a search over routes must find the order that they were trained in."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import evomerge
from evomerge.cli.main import app
from evomerge.experiment.inspecting import OpenRun, open_run
from evomerge.recipes.recipe import Route
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Told
from tests.integration.planted_loss import minus_loss

ROOT = Path(__file__).parents[2]
SHUFFLE = (2, 0, 3, 1)  # stored block i is block SHUFFLE[i] of the trained model
ORDER = [SHUFFLE.index(block) for block in range(len(SHUFFLE))]
BUDGET = 80


@pytest.fixture(scope="module")
def experiment(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment file, beside the shuffled model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("planted")
    model = AutoModelForCausalLM.from_pretrained(micro_zoo["micro-base"])
    blocks = list(model.model.layers)
    for place, block in enumerate(SHUFFLE):
        model.model.layers[place] = blocks[block]
    model.save_pretrained(folder / "shuffled")
    AutoTokenizer.from_pretrained(micro_zoo["micro-base"]).save_pretrained(folder / "shuffled")
    entries: dict[str, Any] = {
        "name": "planted",
        "models": {"experts": {"shuffled": str(folder / "shuffled")}},
        "search_space": {"kind": "data_flow", "encoding": "sequence", "max_hops": 6},
        "fitness": [{"python": "tests.integration.planted_loss:minus_loss", "name": "minus_loss"}],
        "optimizer": "ga",
        "budget": {"evaluations": BUDGET},
        "runtime": {"executor": "inline", "threads": 1},
        "finish": {"baselines": False},
        "import_paths": [str(ROOT)],
        "seed": 3,
    }
    (folder / "planted.yaml").write_text(yaml.safe_dump(entries))
    return folder / "planted.yaml"


@pytest.fixture(scope="module")
def finished(experiment: Path) -> Path:
    """The finished search."""
    assert evomerge.run(experiment, run_dir=experiment.parent / "run").exit_code == 0
    return experiment.parent / "run"


def sequence(run_dir: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for event in EventLog(run_dir / "events.jsonl", writable=False).read():
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.generation, event.genotype, event.recipe_id))
        elif isinstance(event, Evaluated):
            found.append(("evaluated", event.key, event.fitness))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


def test_an_order_as_good_as_the_planted_one_is_found(micro_zoo: dict[str, Path], finished: Path) -> None:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        trained = minus_loss(AutoModelForCausalLM.from_pretrained(micro_zoo["micro-base"]).eval(), None, [], 0)
    opened = open_run(finished)
    best = opened.state.best()
    assert best is not None
    assert best.fitness is not None
    assert best.fitness[0] >= trained - 1e-5
    first = opened.state.candidates[0].fitness
    assert first is not None
    assert first[0] < trained - 1  # what the search began with
    routes = routes_of(opened)
    for key in [key for key, route in routes.items() if blocks_of(route) == ORDER]:
        fitness = opened.state.candidates[key].fitness
        assert fitness is not None
        assert fitness[0] == pytest.approx(trained, abs=1e-5)  # the same blocks in the same order
    assert blocks_of(routes[best.id]) == ORDER


def routes_of(opened: OpenRun) -> dict[int, Route]:
    space, routes = opened.experiment.space, {}
    assert space is not None
    for record in opened.state.candidates:
        route = space.decode(record.asked.array).model
        assert isinstance(route, Route)
        routes[record.id] = route
    return routes


def blocks_of(route: Route) -> list[int]:
    return [hop.block for hop in route.hops]


def test_killed_in_the_middle_of_a_generation_and_resumed(experiment: Path, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "evomerge", "run", str(experiment), "--out", str(run_dir), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    log = run_dir / "events.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b'"evaluated"') >= 20:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = log.read_bytes().count(b'"evaluated"')
    assert 20 <= done < BUDGET
    assert evomerge.resume(run_dir).exit_code == 0
    assert sequence(run_dir) == sequence(finished)


def test_accuracy_against_depth_is_a_front(experiment: Path, tmp_path: Path) -> None:
    entries = yaml.safe_load(experiment.read_text())
    costs = [{"cost": "num_hops"}, {"cost": "flops_per_token", "context": 64, "reference": 2e6}]
    entries |= {
        "fitness": [*entries["fitness"], *costs],
        "budget": {"evaluations": 24},
    }
    entries["fitness"][0]["reference"] = -20.0
    path = tmp_path / "depth.yaml"
    path.write_text(yaml.safe_dump(entries | {"optimizer": {"name": "ga", "population_size": 12}}))
    assert evomerge.run(path, run_dir=tmp_path / "run").exit_code == 0
    opened, front = open_run(tmp_path / "run"), json.loads((tmp_path / "run" / "front.json").read_text())
    assert opened.state.started is not None
    assert opened.state.started.reference_point == (-20.0, -8.0, -2e6)  # twice the four blocks of the model
    assert front["hypervolume"] > 0
    for key, route in routes_of(opened).items():
        fitness = opened.state.candidates[key].fitness
        assert fitness is not None
        assert fitness[1] == -len(route.hops)
    losses = np.array([member["values"]["minus_loss"] for member in front["front"]])
    hops = [member["values"]["num_hops"] for member in front["front"]]
    assert len(set(hops)) > 1
    assert front["best"] == front["front"][int(np.argmax(losses))]["candidate"]  # costs have no share in the scalar
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["units"] == {"num_hops": "hops", "flops_per_token": "FLOP"}
    winner = next(row for row in summary["rows"] if row["kind"] == "winner")["search"]
    assert winner["value"] == pytest.approx(max(losses))
    assert winner["scores"]["num_hops"] > 0  # natural direction
    shown = CliRunner().invoke(app, ["front", str(tmp_path / "run")]).output
    assert f"{hops[0]:.0f} hops" in shown
    assert "M FLOP" in shown or "k FLOP" in shown
