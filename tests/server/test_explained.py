"""docs/server.md explains every gunicorn setting and every Dockerfile instruction, with its current value."""

import ast
import re

from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]  # gunicorn has no type hints

from benchmarks import compare_servers
from tests.conftest import ROOT
from tests.pages import table
from tests.server.conftest import GUNICORN_CONF, LoadConf

# Expected table cells for settings whose value depends on the machine, or is a function or a large dict.
DESCRIBED = {
    "workers": "`2 x CPUs + 1`",
    "worker_tmp_dir": "`/dev/shm`",
    "logconfig_dict": "[`app/logging.py`](../app/logging.py)",
    "pidfile": "`/tmp/gunicorn.pid`",
    "user": "",
    "group": "",
    "pre_fork": "",
    "child_exit": "",
    "on_starting": "",
    "when_ready": "",
}


def names_in_conf() -> list[str]:
    """Return the names of the gunicorn settings in gunicorn.conf.py, in order of appearance."""
    known = {setting.name for setting in KNOWN_SETTINGS}
    names = []
    for node in ast.parse(GUNICORN_CONF.read_text()).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
    return [name for name in names if name in known]


def test_table_explains_every_gunicorn_setting_with_its_value(load_conf: LoadConf) -> None:
    values = load_conf()
    rows = table("gunicorn")

    assert [row[0] for row in rows] == [f"`{name}`" for name in names_in_conf()]
    expected = {
        name: DESCRIBED.get(name, f"`{values[name]}`" if values[name] != "" else "") for name in names_in_conf()
    }
    assert {row[0].strip("`"): row[1] for row in rows} == expected
    assert [row[0] for row in rows if not row[2]] == []


def test_table_names_the_variable_of_every_gunicorn_setting() -> None:
    comments = re.findall(r"^(\w+) = .*  # ([A-Z_]+)\b", GUNICORN_CONF.read_text(), re.MULTILINE)
    named = {setting: variable for setting, variable in comments if setting in names_in_conf()}

    assert {row[0].strip("`"): row[2].split("`")[1] for row in table("gunicorn") if row[0].strip("`") in named} == named


def test_table_explains_every_instruction_of_the_dockerfile() -> None:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    instructions = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line]

    rows = table("dockerfile")
    # The table escapes |, which would otherwise end the cell.
    assert [row[0].replace("\\|", "|") for row in rows] == [f"`{instruction}`" for instruction in instructions]
    assert [row[0] for row in rows if not row[1]] == []


def test_table_of_servers_matches_the_output_of_the_comparison() -> None:
    names = compare_servers.servers(compare_servers.NEVER)
    speed, losses = compare_servers.Speed(1, 1, 1), ["0 of 1", "0 of 1", "0 of 1", "1 s"]
    printed = compare_servers.table(dict.fromkeys(names, speed), dict.fromkeys(names, losses))

    def without_numbers(cells: list[str]) -> str:
        return re.sub(r"[\d.,]*\d", "0", f"| {' | '.join(cells)} |")

    assert [without_numbers(row) for row in table("servers")] == re.sub(r"[\d.,]*\d", "0", printed).splitlines()[2:]
