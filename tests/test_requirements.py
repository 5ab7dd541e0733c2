"""The page of requirements is complete and current: every row has a test, or a reason why not."""

import requirements

REQUIREMENTS = requirements.read()
MARKED = requirements.marked()


def test_every_row_is_shown_by_a_test_or_left_out_for_a_reason():
    missing = [row for row in REQUIREMENTS.rows if row not in REQUIREMENTS.out_of_scope and not MARKED.get(row)]
    assert missing == []


def test_what_is_left_out_is_little_and_has_a_reason():
    assert len(REQUIREMENTS.out_of_scope) <= requirements.OUT_OF_SCOPE_MAX
    assert all(len(reason) > 20 for reason in REQUIREMENTS.out_of_scope.values())
    assert set(REQUIREMENTS.out_of_scope) <= set(REQUIREMENTS.rows)


def test_no_test_claims_a_row_that_does_not_exist():
    assert sorted(set(MARKED) - set(REQUIREMENTS.rows)) == []


def test_the_page_is_what_the_marks_say():
    assert requirements.PAGE.read_text(encoding="utf-8") == requirements.page(REQUIREMENTS, MARKED), (
        "run: python tests/requirements.py"
    )


def test_marks_of_modules_classes_and_functions_are_read(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_it.py").write_text(
        "pytestmark = [pytest.mark.anyio, pytest.mark.row('A-1')]\n"
        "@pytest.mark.row('A-2')\n"
        "class TestIt:\n"
        "    @pytest.mark.row('A-3', 'A-4')\n"
        "    async def test_one(self): ...\n"
        "def test_two(): ...\n"
        "def helper(): ...\n"
    )
    one, two = "tests/test_it.py::test_one", "tests/test_it.py::test_two"
    assert requirements.marked(folder) == {"A-1": [one, two], "A-2": [one], "A-3": [one], "A-4": [one]}
