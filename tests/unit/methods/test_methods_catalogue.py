"""The catalogue: loads without torch, refuses collisions, helps with misspelt names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evomerge.errors import UserError
from evomerge.methods.base import MergeMethod
from evomerge.methods.catalogue import SPECS, _collect, get_spec, load_method


def test_specs_load_without_torch() -> None:
    code = "import sys, evomerge.methods.catalogue as c; sys.exit('torch' in sys.modules or not c.SPECS)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_target_is_a_method_of_its_own() -> None:
    assert len({type(load_method(name)) for name in SPECS}) == len(SPECS) >= 6
    assert all(isinstance(load_method(name), MergeMethod) for name in SPECS)


@pytest.mark.parametrize("find", [get_spec, load_method])
def test_unknown_method_names_the_nearest(find: object) -> None:
    assert callable(find)
    with pytest.raises(UserError, match=r"no merge method is called 'tie'\. Did you mean 'ties'\?"):
        find("tie")


def test_two_methods_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="two methods are called 'ties'"):
        _collect([SPECS["ties"], SPECS["linear"], SPECS["ties"]])
