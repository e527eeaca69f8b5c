"""The README and SECURITY.md explain every setting of the server and every instruction of the image, as they are."""

import ast
import re

from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]  # it has no types
from hitless import Limits

from benchmarks import compare_servers
from tests.conftest import ROOT
from tests.readme import section
from tests.server.conftest import GUNICORN_CONF, LoadConf

# The values in the README that depend on where the server runs, or are not values.
DESCRIBED = {
    "workers": "`2 x CPUs + 1`",
    "worker_tmp_dir": "`/dev/shm`",
    "logconfig_dict": "[`app/logging.py`](app/logging.py)",
    "pidfile": "`/tmp/gunicorn.pid`",
    "user": "",
    "group": "",
    "pre_fork": "",
    "child_exit": "",
    "on_starting": "",
    "when_ready": "",
}


def table(heading: str) -> list[list[str]]:
    """Return the cells of the README's table whose first column has a heading."""
    text = section("Production")
    (rows,) = re.findall(rf"^\| {re.escape(heading)} .*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.splitlines()]


def names_in_conf() -> list[str]:
    """Return the gunicorn settings in gunicorn.conf.py, in order."""
    known = {setting.name for setting in KNOWN_SETTINGS}
    names = []
    for node in ast.parse(GUNICORN_CONF.read_text()).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
    return [name for name in names if name in known]


def test_readme_explains_every_gunicorn_setting_with_its_value(load_conf: LoadConf) -> None:
    values = load_conf()
    rows = table("setting")

    assert [row[0] for row in rows] == [f"`{name}`" for name in names_in_conf()]
    expected = {
        name: DESCRIBED.get(name, f"`{values[name]}`" if values[name] != "" else "") for name in names_in_conf()
    }
    assert {row[0].strip("`"): row[1] for row in rows} == expected
    assert [row[0] for row in rows if not row[2]] == []


def test_readme_names_the_variable_of_every_gunicorn_setting() -> None:
    comments = re.findall(r"^(\w+) = .*  # ([A-Z_]+)\b", GUNICORN_CONF.read_text(), re.MULTILINE)
    named = {setting: variable for setting, variable in comments if setting in names_in_conf()}

    assert {row[0].strip("`"): row[2].split("`")[1] for row in table("setting") if row[0].strip("`") in named} == named


def test_readme_explains_every_instruction_of_the_dockerfile() -> None:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    instructions = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line]

    rows = table("instruction")
    # A | would end the cell.
    assert [row[0].replace("\\|", "|") for row in rows] == [f"`{instruction}`" for instruction in instructions]
    assert [row[0] for row in rows if not row[1]] == []


def test_readme_contains_the_table_that_the_comparison_of_servers_prints() -> None:
    names = compare_servers.servers(compare_servers.NEVER)
    speed, losses = compare_servers.Speed(1, 1, 1), ["0 of 1", "0 of 1", "0 of 1", "1 s"]
    printed = compare_servers.table(dict.fromkeys(names, speed), dict.fromkeys(names, losses))

    def without_numbers(text: str) -> str:
        return re.sub(r"[\d.,]*\d", "0", text)

    (published,) = re.findall(r"^\d.* which wrk shares\.\n\n((?:\|.*\n)+)", section("Production"), re.MULTILINE)
    assert without_numbers(published) == without_numbers(printed)


def test_security_policy_names_the_limits_of_a_connection() -> None:
    limits = Limits()
    expected = [
        f"{limits.head_size // 1024} KiB for request line and headers, {limits.pipelined_requests} pipelined requests",
        f"{limits.request_seconds:.0f} s to arrive, plus one second per {limits.bytes_per_second} bytes",
        f"after {limits.unread_seconds:.0f} s without an acknowledged byte",
    ]

    policy = (ROOT / "SECURITY.md").read_text()
    assert [words for words in expected if words not in policy] == []
