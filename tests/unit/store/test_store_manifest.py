import dataclasses
import json
import subprocess
import sys

import pytest

from evomerge.errors import UserError
from evomerge.store.manifest import Manifest, build_manifest, compare_manifests, load_manifest, write_manifest

MAY_CHANGE = ("budget", "runtime.workers")


def make_manifest(**changes) -> Manifest:
    manifest = build_manifest(
        experiment={
            "name": "a",
            "optimizer": {"name": "cma_es", "sigma": 0.17},
            "budget": {"evaluations": 200},
            "runtime": {"workers": 2, "dtype": "bfloat16"},
            "fitness": ["maths", "spanish"],
        },
        experiment_fingerprint="f1",
        models={"base": "aa", "maths": "bb"},
        documents={"maths": {"search": [{"id": f"d{i}", "hash": f"h{i}"} for i in range(100)]}},
        command=("evomerge", "run", "a.yaml"),
    )
    return dataclasses.replace(manifest, **changes)


def test_round_trip(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = make_manifest()
    write_manifest(path, manifest)
    assert load_manifest(path) == manifest
    differences = compare_manifests(load_manifest(path), manifest, MAY_CHANGE)
    assert differences.refuse == ()
    assert differences.warn == ()


def test_knows_this_machine():
    manifest = make_manifest()
    assert manifest.versions["python"] == sys.version.split()[0]
    assert {"torch", "optuna", "numpy"} <= set(manifest.versions)
    assert manifest.hardware["cores"] >= 1
    assert manifest.hardware["memory_bytes"] > 2**28
    assert manifest.hardware["cpu"]


def test_versions_are_read_without_importing():
    code = (
        "import sys, evomerge.store.manifest as m; m.read_versions(); "
        "print([n for n in ('torch', 'ray', 'optuna', 'lm_eval', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_refuses_a_resume():
    old = make_manifest()
    experiment = json.loads(json.dumps(old.experiment))
    experiment["optimizer"]["sigma"] = 0.2
    experiment["seed"] = 8
    experiment["runtime"]["dtype"] = "float32"
    documents = json.loads(json.dumps(old.documents))
    documents["maths"]["search"][3]["hash"] = "changed"
    new = make_manifest(
        experiment=experiment,
        experiment_fingerprint="f2",
        models={"base": "aa", "maths": "b2", "capitals": "cc"},
        documents=documents,
    )
    differences = compare_manifests(old, new, MAY_CHANGE)
    assert differences.refuse == (
        "experiment optimizer.sigma: was 0.17, is 0.2",
        'experiment runtime.dtype: was "bfloat16", is "float32"',
        "experiment seed: is new: 8",
        'model maths: weights differ, was "bb", is "b2"',
        'model capitals: weights differ, is new: "cc"',
        'documents maths.search[3].hash: was "h3", is "changed"',
    )


def test_what_only_warns():
    old = make_manifest()
    experiment = json.loads(json.dumps(old.experiment))
    experiment["budget"]["evaluations"] = 400
    experiment["runtime"]["workers"] = 8
    new = make_manifest(
        experiment=experiment,
        experiment_fingerprint="f2",
        versions={**old.versions, "torch": "9.9"},
        hardware={**old.hardware, "cores": 999},
    )
    differences = compare_manifests(old, new, MAY_CHANGE)
    assert differences.refuse == ()
    text = "\n".join(differences.warn)
    assert "experiment budget.evaluations: was 200, is 400" in text
    assert "experiment runtime.workers: was 2, is 8" in text
    assert 'versions torch: was "' in text
    assert "hardware cores: was " in text


def test_an_order_that_matters_is_caught_by_the_fingerprint():
    differences = compare_manifests(make_manifest(), make_manifest(experiment_fingerprint="f2"), MAY_CHANGE)
    assert differences.refuse == ('experiment fingerprint: was "f1", is "f2"',)


def test_many_changed_documents_stay_readable():
    old = make_manifest(documents={f"task{i}": {"search": [1, 2, 3]} for i in range(40)})
    new = make_manifest(documents={f"task{i}": {"search": [1, 2, 4]} for i in range(40)})
    refuse = compare_manifests(old, new, MAY_CHANGE).refuse
    assert len(refuse) == 13
    assert refuse[-1] == "and 28 more differences in the documents"
    fewer = make_manifest(documents={"maths": {"search": make_manifest().documents["maths"]["search"][:98]}})
    differences = compare_manifests(make_manifest(), fewer, MAY_CHANGE)
    assert differences.refuse == ("documents maths.search: had 100 entries, has 98",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"v": 9}', '{"v": 1, "odd": 2, "command": []}'])
def test_a_damaged_manifest_is_a_user_error(tmp_path, text):
    path = tmp_path / "manifest.json"
    with pytest.raises(UserError, match="missing"):
        load_manifest(path)
    path.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        load_manifest(path)
