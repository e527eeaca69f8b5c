"""What README.md and SECURITY.md say about production is what the files say: each setting, instruction and value."""

import ast
import re

from app.server import protocol
from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]  # it has no types

from benchmarks import compare_servers
from tests.conftest import ROOT
from tests.readme import section
from tests.server.conftest import Conf

# What depends on where it runs is described, not quoted.
DESCRIBED = {
    "workers": "`2 x CPUs + 1`",
    "worker_tmp_dir": "`/dev/shm`",
    "logconfig_dict": "[`app/server/logs.py`](app/server/logs.py)",
    "pidfile": "`/tmp/gunicorn.pid`",
    "user": "",
    "group": "",
    "on_starting": "",
    "when_ready": "",
    "child_exit": "",
}


def table(head: str) -> list[list[str]]:
    """The cells of the README's table that begins so."""
    text = section("Production")
    (rows,) = re.findall(rf"^\| {re.escape(head)} .*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.splitlines()]


def settings_in_file() -> list[str]:
    """The names in gunicorn.conf.py that mean something to gunicorn, in their order."""
    known = {setting.name for setting in KNOWN_SETTINGS}
    names = []
    for node in ast.parse((ROOT / "gunicorn.conf.py").read_text()).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
    return [name for name in names if name in known]


def test_each_setting_of_the_server_is_explained_with_its_value(conf: Conf) -> None:
    values = conf()
    rows = table("setting")

    assert [row[0] for row in rows] == [f"`{name}`" for name in settings_in_file()]
    expected = {
        name: DESCRIBED.get(name, f"`{values[name]}`" if values[name] != "" else "") for name in settings_in_file()
    }
    assert {row[0].strip("`"): row[1] for row in rows} == expected
    assert [row[0] for row in rows if not row[2]] == []


def test_each_setting_that_a_variable_sets_names_it() -> None:
    source = (ROOT / "gunicorn.conf.py").read_text()

    named = dict(re.findall(r"^(\w+) = .*  # ([A-Z_]+)\b", source, re.MULTILINE))

    assert {row[0].strip("`"): row[2].split("`")[1] for row in table("setting") if row[0].strip("`") in named} == named


def test_each_instruction_of_the_dockerfile_is_explained() -> None:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    instructions = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line]

    rows = table("instruction")
    assert [row[0] for row in rows] == [f"`{instruction}`" for instruction in instructions]
    assert [row[0] for row in rows if not row[1]] == []


def test_the_comparison_of_servers_is_the_table_that_its_script_prints() -> None:
    names = compare_servers.servers(compare_servers.NEVER)
    speed, losses = compare_servers.Speed(1, 1, 1), ["0 of 1", "0 of 1", "0 of 1", "1 s"]
    printed = compare_servers.table(dict.fromkeys(names, speed), dict.fromkeys(names, losses))

    def but_for_figures(text: str) -> str:
        return re.sub(r"[\d.,]*\d", "0", text)

    (said,) = re.findall(r"^\d.* which wrk shares\.\n\n((?:\|.*\n)+)", section("Production"), re.MULTILINE)
    assert but_for_figures(said) == but_for_figures(printed)


def test_the_limits_of_a_connection_are_those_that_the_security_policy_names() -> None:
    said = [
        f"{protocol.MAX_HEAD_SIZE // 1024} KiB for request line and headers, {protocol.MAX_PIPELINED} requests at once",
        f"{protocol.REQUEST_SECONDS:.0f} s to arrive, and a second more for each {protocol.BYTES_PER_SECOND} bytes",
        f"after {protocol.UNREAD_SECONDS} s without an acknowledged byte",
    ]

    policy = (ROOT / "SECURITY.md").read_text()
    assert [words for words in said if words not in policy] == []
