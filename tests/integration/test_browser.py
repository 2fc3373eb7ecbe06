"""What a person sees: a real Chromium opens a run's report and its dashboard.

Screenshots are left in the folder that ``EVOMERGE_SCREENSHOTS`` names, by default the test's own temporary folder.
"""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import evomerge
from evomerge.store.dashboard import serve_dashboard
from evomerge.store.front_file import read_front
from evomerge.store.run_dir import RunDir
from tests.integration.conftest import EXPERIMENT
from tests.integration.headless_browser import Browser, find_chromium


@pytest.fixture(scope="module")
def run_path(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with two objectives."""
    folder = tmp_path_factory.mktemp("seen")
    experiment = {
        **EXPERIMENT,
        "optimizer": {"name": "nsga2", "population_size": 3},
        "budget": {"evaluations": 6},
        "finish": {"top_k": 1, "task_arithmetic": [], "bootstrap_samples": 200, "held_out": False},
    }
    (folder / "seen.yaml").write_text(yaml.safe_dump(experiment))
    assert evomerge.run(folder / "seen.yaml", run_dir=folder / "run").exit_code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with Browser(executable, tmp_path_factory.mktemp("profile"), 120) as started:
        yield started


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("EVOMERGE_SCREENSHOTS") or tmp_path)


def front_ids(run_path: Path) -> set[int]:
    front = read_front(RunDir.open(run_path))
    assert front is not None
    return {entry.candidate for entry in front.entries}


def test_the_report_shows_every_candidate_of_the_front(run_path: Path, browser: Browser, pictures: Path) -> None:
    ids = front_ids(run_path)
    assert ids
    browser.open((run_path / "report.html").as_uri())
    text = browser.value("document.body.innerText")
    named = {int(number) for number in re.findall(r"\bc(\d+)\b", text)}
    assert ids <= named
    marked = browser.value("[...document.querySelectorAll('[id^=front-c]')].map(mark => mark.id)")
    assert {f"front-c{number}" for number in ids} <= set(marked)  # in the figure of the front
    assert browser.screenshot(pictures / "report.png", whole=True).stat().st_size > 20_000


def test_the_dashboard_draws_the_trials_and_the_front(run_path: Path, browser: Browser, pictures: Path) -> None:
    addresses: list[str] = []
    listening = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        listening.set()

    # A daemon: it serves until the process ends.
    threading.Thread(target=serve_dashboard, args=(RunDir.open(run_path), 0, None, ready), daemon=True).start()
    assert listening.wait(60)
    browser.open(addresses[0])
    # Both traces of the front's plot, its members and the others, are points of one scatter plot.
    points = "document.querySelector('.js-plotly-plot')?.querySelectorAll('.scatterlayer .point').length"
    num_shown = browser.wait_for(points, "the plot of the front")
    assert num_shown == 6
    assert browser.screenshot(pictures / "dashboard.png").stat().st_size > 20_000
    browser.open(addresses[0] + "/trials")
    browser.wait_for("document.body.innerText.includes('Best Trial')", "a badge of the front")
    text = browser.value("document.body.innerText")
    assert text.count("Best Trial") == len(front_ids(run_path))
    assert text.count("Complete") > text.count("Best Trial")
    browser.screenshot(pictures / "dashboard_trials.png")
    browser.open(addresses[0] + "/note")
    browser.wait_for("document.body.innerText.includes('Baselines on the search documents')", "the note")
    text = browser.value("document.body.innerText")
    assert "uniform soup" in text
    assert "evomerge export" in text
    browser.screenshot(pictures / "dashboard_note.png")
