"""Data flows one way: a module imports only from those above it in the list of jointvae/structure.py."""

from jointvae.structure import ORDER, PACKAGE, imports


def test_every_module_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ORDER)


def test_imports_only_point_up():
    for place, module in enumerate(ORDER):
        assert imports(PACKAGE / f"{module}.py") <= set(ORDER[:place]), module


def test_every_way_to_import_a_module_is_seen(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "import jointvae\nimport os, jointvae.data\nfrom jointvae import __version__, model\n"
        "from jointvae.errors import JointVAEError\nimport jointvaeish.runs\n\n"
        "def f():\n    from jointvae import training\n"
    )
    assert imports(path) == {"data", "model", "errors", "training"}


def test_only_data_reads_the_environment():
    readers = {path.stem for path in PACKAGE.glob("*.py") if "os.environ" in path.read_text()}
    assert readers == {"data"}
