"""What a room's face gives: names of what is there, and modules that load at their first use."""

from __future__ import annotations

import importlib
import sys

import pytest

from jclip.postponed import Handle


@pytest.fixture
def parcel(tmp_path, monkeypatch):
    """A package with a face and two modules, `light` and `heavy`; the latter says so when it is loaded."""
    folder = tmp_path / "parcel"
    folder.mkdir()
    face = 'from jclip.postponed import face\n__getattr__, __dir__, __all__ = face(__name__, {"light": ("one",)})\n'
    (folder / "__init__.py").write_text(face)
    (folder / "light.py").write_text("from parcel import heavy\n\ndef one():\n    return heavy.two() - 1\n")
    (folder / "heavy.py").write_text("from parcel import light\n\nNUMBER = 2\n\ndef two():\n    return NUMBER\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("parcel")
    for name in ("parcel", "parcel.light", "parcel.heavy"):
        sys.modules.pop(name, None)


def test_a_module_loads_at_its_first_use(parcel):
    from parcel import heavy

    assert type(heavy) is Handle and "parcel.heavy" not in sys.modules
    assert heavy.two() == 2 and "parcel.heavy" in sys.modules
    from parcel import heavy as again

    assert again is sys.modules["parcel.heavy"] is not heavy and dir(heavy) == dir(again)


def test_names_are_looked_up_and_two_modules_may_name_each_other(parcel):
    assert parcel.one() == 1 and parcel.__all__ == ["one"] == dir(parcel)


def test_what_is_set_is_set_in_the_module(parcel, monkeypatch):
    from parcel import heavy

    with monkeypatch.context() as patch:  # before anything was loaded
        patch.setattr(heavy, "NUMBER", 7)
        assert sys.modules["parcel.heavy"].NUMBER == 7 and parcel.one() == 6
    assert heavy.NUMBER == 2 and vars(heavy)["NUMBER"] == 2
    del heavy.NUMBER
    assert not hasattr(sys.modules["parcel.heavy"], "NUMBER")


def test_a_handle_of_a_name_follows_it(parcel):
    from parcel import heavy

    heavy.inner = heavy  # stands for a module held by a module, as Jittor by `jclip.runtime`
    assert Handle("parcel.heavy", "inner").two() == 2
    with pytest.raises(AttributeError, match="absent"):
        Handle("parcel.heavy", "inner").absent  # noqa: B018


def test_what_is_not_there_is_refused(parcel):
    with pytest.raises(ImportError, match="nothing"):
        from parcel import nothing  # noqa: F401
    with pytest.raises(AttributeError, match="module 'parcel' has no attribute 'three'"):
        parcel.three  # noqa: B018
