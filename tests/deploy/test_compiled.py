"""What `make compiled` translates is there, and may be translated. The build takes a minute of a core,
and compares its results with the source's."""

from __future__ import annotations

from deploy.compiled import FILES, ROOT, VALUES


def test_every_file_that_is_compiled_exists_once() -> None:
    """A room that is renamed has to be renamed here."""
    assert [name for name in FILES if not (ROOT / name).is_file()] == []
    assert len(set(FILES)) == len(FILES)


def test_values_are_written_as_the_build_spells_them_out() -> None:
    """Each file of values imports the decorator in a line of its own, and makes nothing but values."""
    for name in VALUES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.count("from router.value import value\n") == 1, name
        assert text.count("\n@value\n") == text.count("@value"), name
        assert "import dataclass" not in text.replace("from dataclasses import field", ""), name


def test_parameters_are_not_compiled() -> None:
    """Their defaults are fields, which machine code refuses to take for numbers."""
    parametric = [name for name in FILES if "policies.parameters import" in (ROOT / name).read_text("utf-8")]
    assert [name for name in parametric if "number(" in (ROOT / name).read_text("utf-8")] == []
