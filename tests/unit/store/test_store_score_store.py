import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.store.score_store import ScoreStore, safe_name
from evomerge.terms import DocumentScores


@pytest.fixture
def store(tmp_path) -> ScoreStore:
    (tmp_path / "scores").mkdir()
    return ScoreStore(tmp_path)


def tables() -> tuple[DocumentScores, ...]:
    rng = np.random.default_rng(0)
    return (
        DocumentScores(
            "maths", ("d1", "d2", "ünï"), rng.random(3), {"log_probability": rng.random(3), "n": np.ones(3)}
        ),
        DocumentScores("spanish", ("x",), np.array([np.nextafter(0.1, 1)])),
    )


def test_round_trip_keeps_every_bit(store):
    saved = tables()
    loaded = store.load(store.save("c17", saved))
    assert len(loaded) == 2
    for old, new in zip(saved, loaded, strict=True):
        assert (old.objective, old.document_ids, list(old.extra)) == (new.objective, new.document_ids, list(new.extra))
        assert old.values.tobytes() == new.values.tobytes()
        for name in old.extra:
            assert np.asarray(old.extra[name]).tobytes() == np.asarray(new.extra[name]).tobytes()


def test_no_tables_is_a_table_too(store):
    assert store.load(store.save("c1", ())) == ()


def test_names_are_safe_and_distinct(tmp_path, store):
    keys = ["c1", "baseline:uniform_soup:search", "baseline+uniform_soup+search", "a/b", "..", "a b", "é", "x" * 400]
    keys.append("x" * 399 + "y")
    names = {safe_name(key) for key in keys}
    assert len(names) == len(keys)
    assert all("/" not in name and len(name) <= 180 for name in names)
    assert safe_name("baseline:uniform_soup:search") == "baseline+uniform_soup+search"
    for key in keys:
        assert len(store.load(store.save(key, tables()))) == 2
    store.sync()
    assert len(list((tmp_path / "scores").iterdir())) == len(keys)


def test_saving_again_replaces(store):
    store.save("c1", tables())
    ref = store.save("c1", tables()[:1])
    assert len(store.load(ref)) == 1


def test_missing_damaged_and_outside_files_are_user_errors(tmp_path, store):
    with pytest.raises(UserError, match="missing"):
        store.load("scores/c9.npz")
    ref = store.save("c1", tables())
    data = (tmp_path / ref).read_bytes()
    for damage in (data[:-30], data[:40], b"", b"hello"):
        (tmp_path / ref).write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            store.load(ref)
    for ref in ("../secret.npz", "/etc/passwd"):
        with pytest.raises(UserError, match="outside"):
            store.load(ref)


def test_pickles_are_never_loaded(tmp_path, store):
    np.savez(tmp_path / "scores" / "c1.npz", about=np.array([{"v": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        store.load("scores/c1.npz")


def test_wrong_shapes_are_our_bug(store):
    with pytest.raises(ValueError, match="maths"):
        store.save("c1", [DocumentScores("maths", ("a", "b"), np.zeros(3))])


def test_an_unwritable_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot write per-document scores"):
        ScoreStore(tmp_path / "nowhere").save("c1", tables())
