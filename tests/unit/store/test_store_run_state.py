import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.store.events import Asked, Evaluated, Failed, Resumed, RunFinished, Told
from evomerge.store.run_state import read_state


def test_adds_up(events):
    state = read_state(events)
    assert state.started == events[0]
    assert [record.id for record in state.candidates] == list(range(9))
    assert [record.id for record in state.pending] == [8]
    assert [failure.key for failure in state.failures] == ["c3"]
    assert state.failures[0].attempts == 2
    assert state.num_evaluations == 8
    assert list(state.outcomes)[:2] == ["baseline:uniform_soup:search", "c7"]
    assert state.told == (tuple(range(8)),)
    assert [closed.generation for closed in state.generations] == [0]
    assert state.finished == RunFinished("budget", 1_700_000_200.0)
    records, fitness = state.scored()
    assert [record.id for record in records] == [0, 1, 2, 4, 5, 6, 7]
    assert fitness.shape == (7, 2)
    assert np.array_equal(fitness[:, 0], np.array([0, 1, 2, 4, 5, 6, 7]) / 10)


def test_best_follows_the_weights_and_prefers_the_earlier(events):
    state = read_state(events)
    # The objectives' own weights are 1 and 0.1: both fitnesses cancel, and equal sums go to the first asked.
    assert state.best((1.0, 0.0)).id == 7
    assert state.best((0.0, 1.0)).id == 0
    assert state.best((0.0, 0.0)).id == 0
    assert [record.id for record in state.ranked((1.0, 0.0), count=3)] == [7, 6, 5]
    assert state.best().id in range(9)
    with pytest.raises(ValueError, match="3 weights for 2 objectives"):
        state.best((1.0, 1.0, 1.0))


def test_an_empty_log_is_a_run_that_did_not_start():
    state = read_state([])
    assert state.started is None
    assert state.best() is None
    assert state.elapsed_seconds == 0.0


def test_a_resume_unfinishes_and_pauses_do_not_count(events):
    later = 1_700_009_000.0
    state = read_state([*events, Resumed(later, "0.1"), Evaluated("c8", 8, "search", (0.1, -3.0), finished=later + 5)])
    assert state.finished is None
    assert len(state.sessions) == 2
    assert state.elapsed_seconds == pytest.approx(199.75 + 5)
    assert state.pending == ()


def test_the_same_events_give_the_same_state(events):
    assert read_state(events) == read_state(list(events))


def test_contradictions_name_their_line(events, started):
    done = Evaluated("c8", 8, "search", (0.1, 0.2))
    cases = [
        ([events[1]], "line 1 comes before the start"),
        ([started, started], "line 2 starts the run a second time"),
        ([started, Asked(1, 0, (0.0,), "ab")], "line 2 asks candidate 1, expected 0"),
        ([started, done], "line 2 gives an outcome for candidate 8, which was never asked"),
        ([*events, done, done], f"line {len(events) + 2} gives a second outcome for 'c8'"),
        ([*events, done, Failed("again", 8, "search", "timeout", "x")], "second outcome for candidate 8"),
        ([*events, Evaluated("c8", 8, "search", (0.1,))], "1 values for 2 objectives"),
        ([*events, Told((8,))], "tells candidate 8, which has no outcome"),
        ([*events, Told((2,))], "tells candidate 2 a second time"),
    ]
    for broken, message in cases:
        with pytest.raises(UserError, match=message):
            read_state(broken)
