"""Commands in the text and tables of the documentation are valid. Other tests run the commands in code blocks.

Inline code is a command if it matches COMMAND or VARIABLE. The tests check what a change of this repository can break:
the subcommands, options, files, modules, tests, services and variables that a command names.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from processes import TIMEOUT

from app import cli
from app.setting_names import COMPOSE_VARIABLES, OTHER_PREFIXES
from app.settings import Settings
from tests.conftest import GROUPS, ROOT
from tests.pages import PAGES, blocks

# Matches the start of a command: a program with subcommands, a program with options only, or a program whose --help
# these tests do not read.
COMMAND = re.compile(
    r"(?:(docker (?:builder|compose|container|image|network|system|volume)|docker|python -m app|alembic|fastapi|uv)"
    r"(?: [a-z][\w-]*)?|(gunicorn|uvicorn|pytest)|python -m|\.ci/run)(?!\S)"
)
VARIABLE = re.compile(r"(?:-e )?([A-Z][A-Z\d_]+)=")
OTHER_VARIABLES = {"HTTPS_PROXY", "HTTP_PROXY", "LANG", "NO_PROXY", "PATH", "TZ"}
OF_REPOSITORY = re.compile(r"(?:app|benchmarks|docs|packages|scripts|tests)(?:[./][\w./:-]*)?")
# Commands that run another command, and the number of positional arguments before that command.
RUNNERS = {"uv run": 0, "docker run": 1, "docker exec": 1, "docker compose run": 1, "docker compose exec": 1}
OF_SERVICES = re.compile(r"docker compose (?:build|exec|kill|logs|ps|pull|restart|rm|run|start|stop|up)")


def inline_commands() -> Iterator[tuple[str, str, str]]:
    """Yield each command, its location (`file:line`), and the files that the page tells readers to create."""
    for page in [*PAGES, ROOT / ".github/pull_request_template.md", *sorted((ROOT / "packages").glob("*/*.md"))]:
        created = " ".join(block.title for block in blocks() if block.page == page)
        text = re.sub(r"(?ms)^```.*?^```$", lambda block: "\n" * block[0].count("\n"), page.read_text())
        for paragraph in re.finditer(r"(?:.+\n?)+", text):
            for code in re.finditer(r"(?<!`)`([^`]+)`(?!`)", paragraph[0]):
                command = " ".join(code[1].replace("\\|", "|").split())
                if COMMAND.match(command) or VARIABLE.match(command):
                    line = text.count("\n", 0, paragraph.start() + code.start()) + 1
                    yield command, f"{page.relative_to(ROOT)}:{line}", created


def simple_commands(command: str) -> list[list[str]]:
    """Split a command line at operators such as `|` and `&&`, and return the words of each part.

    Placeholders such as `<name>` are omitted.
    """
    lexer = shlex.shlex(re.sub(r"<[^<>]+>|…|\d(?=>)", " ", command), posix=True, punctuation_chars="|;&>")
    lexer.whitespace_split = True
    return [list(words) for separates, words in groupby(lexer, lambda word: set(word) <= set("|;&>")) if not separates]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program without PYTEST_ADDOPTS, whose option `--cov` would delete the coverage data of this test run."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"} | {"COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT)


@cache
def usage(command: str) -> str:
    """Return the `--help` output of a command, or an empty string if the program has no help or is not installed."""
    program, *words = command.split()
    if command.startswith("python -m app"):  # in this process, because starting a new one takes a second
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as output, suppress(SystemExit):
            patch.setattr(sys, "argv", [*words[1:], "--help"])
            cli.main()
        return output.getvalue()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not (file := shutil.which(program, path=path)):
        return ""
    return run(file, *words, *(["--noconftest"] if program == "pytest" else []), "--help").stdout


def arguments(words: list[str], text: str) -> Iterator[int]:
    """Yield the positions of the positional arguments.

    The command's help, `text`, shows which options take a value. If it is empty, any word after an option may be the
    option's value, so stop at the first option.
    """
    option = ""
    for position, word in enumerate(words):
        is_value = option and re.search(rf"(?<![\w-]){re.escape(option)}(, --[\w-]+)? [^\s,]+(,|  |\n)", text)
        option = word if word.startswith("-") else ""
        if option and not text:
            return
        if not option and not is_value:
            yield position


def problems(words: list[str], created: str) -> Iterator[str]:
    """Yield the problems with a command, and with any command that it runs, as in `docker compose run`."""
    while variable := VARIABLE.match(" ".join(words)):
        if not is_read(variable[1]):
            yield f"{variable[1]} is not a setting. If another program reads it, add it to OTHER_VARIABLES"
        words = words[2 if words[0] == "-e" else 1 :]
    if not (match := COMMAND.match(" ".join(words))):
        return
    name, program, rest = match[0], match[1] or match[2], words[len(match[0].split()) :]
    text = usage(name) if program else ""
    if program and name not in text and program in usage(program):
        yield f"there is no {name}"
        return
    positions = list(arguments(rest, text))
    given = [rest[position] for position in positions]
    if name in RUNNERS and given:
        inner = positions[0] + RUNNERS[name]
        yield from problems(rest[inner:], created)
        rest, given = rest[:inner], given[: RUNNERS[name]]
    for word in rest if text and name != match[1] else []:  # otherwise the options may be a subcommand's
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        if re.match("--?[a-zA-Z]", option) and not re.search(rf"(?<![\w-]){option}(?![\w-])", text):
            yield f"{name} has no option {option}"
    yield from unknown_names(name, rest, given, created)


def unknown_names(name: str, rest: list[str], given: list[str], created: str) -> Iterator[str]:
    """Yield a problem for each missing service, test, test group or part of `.ci/run` that a command names."""
    if OF_SERVICES.fullmatch(name):
        files = "".join(path.read_text() for path in ROOT.glob("*compose*.y*ml"))
        sections = "".join(re.findall(r"(?m)^services:\n((?:[ #].*\n|\n)*)", files))
        services = re.findall(r"(?m)^  ([\w-]+):", sections)
        words = [word for word in given if re.fullmatch(r"[a-z][\w-]*", word)]  # skip placeholders
        yield from (f"no compose file has a service {word}" for word in words if word not in services)
    elif name == ".ci/run":
        parts = re.findall(r"(?m)^(\w+)\(\)", (ROOT / name).read_text())
        yield from (f"there is no part {part}" for part in operands(*given) - {*parts, "smoke", *GROUPS})
    elif name == "pytest":
        options = dict(pairwise(rest))
        yield from (f"there is no group {group}" for group in operands(options.get("-m", "")) - {"smoke", *GROUPS})
        if "-k" in options and not all(word in created for word in operands(options["-k"])):
            result = run(
                sys.executable,
                "-m",
                "pytest",
                *rest,
                "--collect-only",
                "--quiet",
                "--no-cov",
                "-n0",
                "-pno:cacheprovider",
            )
            if result.returncode:
                yield f"it selects no test:\n{result.stdout[-300:]}{result.stderr}"


def operands(*expressions: str) -> set[str]:
    """Return the names used in pytest expressions: `drills` and `browser` for `drills or browser`."""
    return set(re.findall(r"\w+", " ".join(expressions))) - {"and", "or", "not"}


def is_read(variable: str) -> bool:
    """Return whether the application, a Compose file, a test or another program reads the variable."""
    if variable in {*map(str.upper, Settings.model_fields), *COMPOSE_VARIABLES, *OTHER_VARIABLES}:
        return True
    tests = (path.read_text() for folder in ("tests", "packages") for path in (ROOT / folder).rglob("*.py"))
    return variable.startswith(OTHER_PREFIXES) or any(f'"{variable}"' in test for test in tests)


def exists(name: str, created: str) -> bool:
    """Return whether a file, folder or module exists, or is one that the page tells readers to create (`created`)."""
    path = ROOT / (name.partition("::")[0] if "/" in name else name.partition(":")[0].replace(".", "/"))
    return path.exists() or path.with_suffix(".py").exists() or name in created


def mistakes(command: str, created: str) -> list[str]:
    """Return the problems with a command from the documentation, for example that a file does not exist."""
    found = []
    for words in simple_commands(command):
        found += [
            f"there is no {word}" for word in words if OF_REPOSITORY.fullmatch(word) and not exists(word, created)
        ]
        found += problems(words, created)
    return found


COMMANDS = {command: (place, created) for command, place, created in inline_commands()}


# For a command with `-k`, pytest imports all tests, which takes seconds. Only the group `copies` checks such commands.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=place, marks=[pytest.mark.copies] if " -k " in command else [])
        for command, (place, _) in COMMANDS.items()
    ],
)
def test_command_in_a_sentence_is_right(command: str) -> None:
    place, created = COMMANDS[command]

    found = mistakes(command, created)

    assert not found, f"{place}: `{command}`: {', '.join(found)}"


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("uv run python -m app missing", "there is no python -m app missing"),
        ("docker compose exec web python -m app migrate --missing", "python -m app migrate has no option --missing"),
        ("python -m app openapi > tests/missing.json", "there is no tests/missing.json"),
        ("uv run python -m benchmarks.missing", "there is no benchmarks.missing"),
        ("uv run alembic revision -m x --missing", "alembic revision has no option --missing"),
        ("docker compose logs missing | grep x", "no compose file has a service missing"),
        ("uv run pytest --missing", "pytest has no option --missing"),
        ("pytest -m 'drills or missing'", "there is no group missing"),
        (".ci/run missing", "there is no part missing"),
        (
            "MISSING=1 uv run fastapi dev",
            "MISSING is not a setting. If another program reads it, add it to OTHER_VARIABLES",
        ),
    ],
)
def test_wrong_command_is_found(command: str, mistake: str) -> None:
    assert mistakes(command, "") == [mistake]
