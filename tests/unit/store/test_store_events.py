import json
import math

import numpy as np
import pytest

from evomerge.store.events import (
    Asked,
    Evaluated,
    EventError,
    GenerationClosed,
    Resumed,
    RunFinished,
    Told,
    format_event,
    parse_event,
)
from evomerge.terms import Candidate

ODD_FLOATS = (0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3, 123456789.123456789, 2.0**53 + 2)


def test_every_event_survives_its_line(events):
    for event in [*events, Resumed(1.5, "0.2", ("torch was 2.6, is 2.7",)), RunFinished("budget", 2.0)]:
        line = format_event(event)
        assert "\n" not in line
        assert parse_event(line) == event


def test_floats_keep_every_bit():
    candidate = Candidate(0, np.array(ODD_FLOATS), "ab", 3, (1, 2))
    back = parse_event(format_event(Asked.of(candidate)))
    assert isinstance(back, Asked)
    assert back.array.tobytes() == candidate.genotype.tobytes()
    again = back.as_candidate()
    assert (again.id, again.recipe_id, again.generation, again.parent_ids) == (0, "ab", 3, (1, 2))
    assert again.genotype.dtype == np.float64


def test_numpy_scalars_become_plain_numbers():
    event = Evaluated("c0", np.int64(0), "search", (np.float64(0.5), np.float32(0.25)), {"a": np.float64(1.0)})
    assert parse_event(format_event(event)) == Evaluated("c0", 0, "search", (0.5, 0.25), {"a": 1.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"evaluated\.fitness"):
        format_event(Evaluated("c0", 0, "search", (bad,)))
    with pytest.raises(ValueError, match=r"evaluated\.metrics\.acc"):
        format_event(Evaluated("c0", 0, "search", (0.1,), {"acc": bad}))
    line = format_event(Evaluated("c0", 0, "search", (0.5,))).replace("0.5", "NaN")
    with pytest.raises(EventError, match="fitness"):
        parse_event(line)


def edit(event, /, **changes) -> str:
    entries = json.loads(format_event(event))
    for name, value in changes.items():
        if value is None:
            del entries[name]
        else:
            entries[name] = value
    return json.dumps(entries)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "is not JSON"),
        ("[1]", "not a JSON object"),
        (edit(Told((1,)), v=2), "schema version 2"),
        (edit(Told((1,)), v=None), "schema version None"),
        (edit(Told((1,)), event="tolld"), "unknown event 'tolld'"),
        (edit(Told((1,)), candidates="x"), "told.candidates 'x'"),
        (edit(Told((1,)), candidates=[1.5]), "told.candidates 1.5"),
        (edit(Told((1,)), extra=1), "unknown field 'extra'"),
        (edit(Told((1,)), candidates=None), "no field 'candidates'"),
        (edit(GenerationClosed(0, 1.0, 1), generation=True), "generation_closed.generation True, expected int"),
        (edit(RunFinished("budget", 1.0), time="later"), "run_finished.time 'later', expected float"),
    ],
)
def test_a_line_that_does_not_fit_says_why(line, message):
    with pytest.raises(EventError, match=message.replace("(", r"\(")):
        parse_event(line)


def test_unknown_failure_kind_is_refused(events):
    failed = next(event for event in events if type(event).__name__ == "Failed")
    with pytest.raises(EventError, match="'bored'"):
        parse_event(edit(failed, kind="bored"))
