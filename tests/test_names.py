"""storage/names.py: what is no photo and no class."""

import pytest

from imgclf_jax.storage import names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("__MACOSX", "__MACOSX"),
        ("@eaDir", "@eaDir"),
        ("lost+found", "lost+found"),
        (".ipynb_checkpoints", ".ipynb_checkpoints"),
        ("THUMBS.DB", "Thumbs.db"),
        ("._IMG_1.jpg", "._*"),
        (".DS_Store", names.HIDDEN),
        ("System Volume Information", "System Volume Information"),
        ("cat", ""),
        ("_private", ""),
        ("thumbs", ""),
        ("@home", ""),
    ],
)
def test_clutter(name, kind):
    assert names.clutter(name) == kind


def test_kinds_are_counted():
    assert names.summary(["b", "a", "b"]) == "a (1), b (2)"


def test_a_class_has_one_name_however_its_accents_are_written():
    assert names.class_name("Bla\u0308tter") == names.class_name("Blätter") == "Blätter"
    assert names.class_name("Blatter") != "Blätter"
