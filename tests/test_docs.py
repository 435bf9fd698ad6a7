"""What documents derive is up to date, and what they promise exists."""
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import ingot
from ingot import BuildOptions
from ingot.cli import app, main

REPOSITORY = Path(__file__).parents[1]


def _docs():
    spec = importlib.util.spec_from_file_location("docs", REPOSITORY / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_command_line_is_what_the_commands_say():
    assert (REPOSITORY / "docs" / "cli.md").read_text() == _docs().cli_page()


def test_the_figures_in_the_readme_are_what_was_measured():
    assert (REPOSITORY / "README.md").read_text() == _docs().readme_page()


def test_the_page_of_models_is_what_was_measured():
    assert (REPOSITORY / "docs" / "models.md").read_text() == _docs().models_page()


def test_every_model_of_the_zoo_is_of_a_kind_and_was_measured_right():
    rows = {r["name"]: r for r in json.loads((REPOSITORY / "benchmarks/results/models.json").read_text())["models"]}
    named = [n for names in _docs().KINDS.values() for n in names]
    assert len(named) == len(set(named)) and not set(rows) - set(named)
    assert all(r["verdict"] == "right" for r in rows.values()), [n for n, r in rows.items() if r["verdict"] != "right"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/cli.md"])
def test_commands_that_documents_show_exist_with_their_options(document, capsys):
    shown = re.findall(r"^ {4}ingot (\w+)(.*)$", (REPOSITORY / document).read_text(), re.M)
    for command, rest in shown:
        assert main([command, "--help"]) == 0
        told = capsys.readouterr().out
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in told, f"{document}: ingot {command} has no {option}"


def test_every_command_has_json_and_an_example():
    for command in app.registered_commands:
        assert "as_json" in command.callback.__annotations__
        assert "Example: ingot " in command.callback.__doc__


def test_every_build_option_is_a_flag_with_its_own_help():
    page = (REPOSITORY / "docs" / "cli.md").read_text().partition("## ingot build")[2].partition("## ")[0]
    for option in fields(BuildOptions):
        assert f"`--{option.name.replace('_', '-')}`" in page, option.name
        assert option.metadata["help"] in page, option.name


def test_names_the_readme_uses_are_public():
    names = set(re.findall(r"\bingot\.([A-Za-z_]+)\(", (REPOSITORY / "README.md").read_text()))
    assert names <= set(ingot.__all__)
