"""README.md and RESULTS.md say what the saved tables give, and nothing else."""

import re
import shutil

import made_up
import pytest

from report import experiments, results_page
from study.cli import UserError


@pytest.fixture
def tables(tmp_path):
    """A folder with the tables of one made-up experiment."""
    experiments.save_results(made_up.results("mnist-base"), tmp_path / "results", "mnist-base")
    return tmp_path / "results"


def test_both_files_say_what_the_saved_tables_give():
    folder = results_page.ROOT / "results"
    assert (results_page.ROOT / "RESULTS.md").read_text() == results_page.page(folder)
    readme = (results_page.ROOT / "README.md").read_text()
    assert readme == results_page.with_quotation(readme, results_page.quoted(folder))


def test_the_readme_quotes_the_five_headlines(tables):
    title, *lines = results_page.quoted(tables).splitlines()
    assert re.match(r"\*\*mnist-base\*\*, .* untrained networks on mnist; left out, .*\.$", title)
    assert [re.match(r"- (\w+)", line)[1] for line in lines] == ["drop", "l1", "l2", "Agreement", "Agreement"]


def test_what_must_be_known_of_an_experiment_stands_beside_its_numbers(tables):
    experiments.save_results(made_up.results("cifar10-quarter"), tables, "cifar10-quarter")
    (tables / "cifar10-quarter.md").write_text("Of smaller images.\n")
    first, second = results_page.quoted(tables).split("\n\n**")
    assert "smaller" not in first and second.startswith("cifar10-quarter**, ") and "mnist" not in second
    assert re.search(r"untrained networks on cifar10; left out, .*\. Of smaller images\.$", second.splitlines()[0])
    section = results_page.section("cifar10-quarter", tables)
    assert section.split("\n\n")[2] == "Of smaller images."


def test_check_writes_nothing_and_fails_where_a_number_differs(tables, tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    shutil.copy(results_page.ROOT / "report" / "deviations.md", tmp_path / "report")
    monkeypatch.setattr(results_page, "ROOT", tmp_path)
    monkeypatch.setattr(results_page, "page", lambda folder: "# Results\n")
    (tmp_path / "README.md").write_text(f"# A\n{results_page.BEGIN}\nold\n{results_page.END}\nB\n")
    args = results_page.parser().parse_args(["--folder", str(tables)])
    results_page.main(args)
    args.check = True
    results_page.main(args)
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and text.startswith("# A\n") and text.endswith("\nB\n")
    wrong = re.sub(r"\d networks", "9 networks", text, count=1)
    (tmp_path / "README.md").write_text(wrong)
    with pytest.raises(SystemExit, match=r"README\.md does not say"):
        results_page.main(args)
    assert (tmp_path / "README.md").read_text() == wrong


def test_a_readme_without_a_place_for_the_results_is_refused():
    with pytest.raises(UserError, match="has no lines"):
        results_page.with_quotation("# A\n", "- b\n")
