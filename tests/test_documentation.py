"""The documentation agrees with the code, the settings, the tests and itself."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from hitless import Limits
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.main import create_app
from app.setting_types import EXAMPLE_SECRET_KEY
from app.settings import Settings, load_settings
from tests.conftest import GROUPS, ROOT, make_settings
from tests.pages import PAGES, Block, blocks, command, table, tables

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# Line limits for pages to which the default limit does not apply.
MAX_LINES = {"operations.md": 330, "README.md": 200, "add-a-feature.md": 199, "AGENTS.md": 60}


# Commands, tables and links ------------------------------------------------------------------------------------------


def test_every_command_of_a_page_is_run_by_a_test() -> None:
    """Conversely, every command that a test runs must be on a page."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    used = set(re.findall(r'\bcommand\("([\w-]+)"\)', tests))
    used |= set(re.findall(r"name=([\w-]+)", (ROOT / ".ci/run").read_text()))

    named = {block.name for block in blocks() if block.name}
    assert not named - used, "no test runs these commands. Add tests, or remove their names"
    assert not used - named, "these commands are on no page. If the documentation needs none, delete their tests"


def test_every_shell_block_has_a_name() -> None:
    assert [block for block in blocks() if block.language in {"sh", "console"} and not block.name] == []


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "diff"], ids=lambda block: block.title
)
def test_diff_can_be_applied(block: Block) -> None:
    """The test also passes if the diff has already been applied."""
    text = (ROOT / block.title).read_text()
    for hunk in block.text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        assert text.count(before) == 1 or after in text, before


def test_every_table_with_a_name_is_compared() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))

    assert tables().keys() == set(re.findall(r'\btable\("([\w-]+)"\)', tests))


@every_page
def test_page_is_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= MAX_LINES.get(page.name, 300)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_existing_files_headings_and_tests(page: Path) -> None:
    # Links with this prefix lead to GitHub's own pages about the repository, not to files.
    up = "../" * (1 + len(page.relative_to(ROOT).parts))
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)

    for link, title in re.findall(r'(?:\]\(|src=")(?!https?:)([^\s)"]+)(?: "(.+?)")?[)"]', text):
        if link == f"{up}security/advisories/new":
            continue
        if workflow := re.fullmatch(rf"{re.escape(up)}actions/(workflows/\w+\.yml)(/badge\.svg)?", link):
            assert (ROOT / ".github" / workflow[1]).exists(), link
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
        assert not title or f"def {title}(" in target.read_text(), f"{link} has no {title}"


# Settings ------------------------------------------------------------------------------------------------------------


def default(info: FieldInfo) -> str:
    """Return a setting's default, formatted as in an environment variable, or an empty string if there is none."""
    value = info.get_default()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value)


def env_example() -> str:
    """Return the expected contents of .env.example."""
    lines = ["# Copy this file to .env. Lines that are commented out show the defaults.", ""]
    for name, info in Settings.model_fields.items():
        is_secret_key = name == "secret_key"
        assignment = f"{name.upper()}={EXAMPLE_SECRET_KEY if is_secret_key else default(info)}"
        lines += [f"# {info.description}", assignment if is_secret_key else f"# {assignment}", ""]
    return "\n".join(lines)


def test_settings_have_descriptions() -> None:
    assert all(info.description for info in Settings.model_fields.values())


def test_table_contains_every_setting() -> None:
    rows = [
        [f"`{name.upper()}`", f"`{default(info)}`" if default(info) else "", info.description or ""]
        for name, info in Settings.model_fields.items()
    ]
    found = table("settings")
    missing = "\n".join(f"| {' | '.join(row)} |" for row in rows if row not in found)

    assert found == rows, f"The table should be in the order of Settings. Missing rows:\n{missing}"


def test_example_file_lists_every_setting() -> None:
    found, expected = (ROOT / ".env.example").read_text().splitlines(), env_example().splitlines()
    missing = "\n".join(line for line in expected if line not in found)

    assert found == expected, f".env.example should be in the order of Settings. Missing lines:\n{missing}"


def test_example_file_is_valid_in_development(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / ".env.example", tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-euc", command("copy-env")], check=True)

    settings = load_settings()

    assert settings.environment == "development"
    assert settings.secret_key.get_secret_value() == EXAMPLE_SECRET_KEY


def test_table_contains_every_variable_of_the_compose_files() -> None:
    files = ["docker-compose.yml", "docker-compose.production.yml"]
    found = [set(re.findall(r"\$\{(\w+):-([^}]+)\}", (ROOT / file).read_text())) for file in files]

    described: list[set[tuple[str, str]]] = [set(), set()]
    for variable, value, file, _ in table("compose-variables"):
        for number, name in enumerate(files):
            if file in {"both", f"`{name}`"}:
                described[number].add((variable.strip("`"), value.strip("`")))

    assert described == found


# The code ------------------------------------------------------------------------------------------------------------


def test_table_contains_every_part_of_the_application() -> None:
    parts = {path.name for path in (ROOT / "app").iterdir() if not path.name.startswith("__")}
    features = {path.parent.name for path in (ROOT / "app").glob("*/router.py")}  # some features do not define errors

    mentioned = {name for first, _ in table("parts") for name in re.findall(r"\(\.\./app/([\w.]+)\)", first)}

    assert mentioned | features == parts


def test_table_contains_the_middleware_in_order() -> None:
    settings = make_settings(cors_origins=["https://example.com"], allowed_hosts=["example.com"])
    modules = [middleware.cls.__module__ for middleware in create_app(settings).user_middleware]

    assert [row[0].strip("`") for row in table("middleware")] == [module.rpartition(".")[2] for module in modules]


def test_table_contains_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]  # always matches
        for group in (project["project"]["dependencies"], *project["dependency-groups"].values())
        for requirement in group
    }

    assert {name for row in table("packages") for name in row[0].split(", ")} == packages


def test_table_contains_every_group_of_tests() -> None:
    assert {row[0].strip("`") for row in table("groups")} == {"default", "smoke", *GROUPS}


def test_table_contains_the_limits_of_a_connection() -> None:
    limits = Limits()
    seconds = f"{limits.request_seconds:.0f} s"

    assert [row[1] for row in table("limits")] == [
        f"{limits.head_size // 1024} KiB",
        f"{limits.header_lines}",
        f"{limits.pipelined_requests}",
        f"{seconds}, and 1 s more per {limits.bytes_per_second} bytes, but at most {seconds} from the last byte",
        f"{limits.unread_seconds:.0f} s",
        f"{limits.websocket_message_size // 1024} KiB",
        f"{limits.websocket_queue}",
        f"{limits.websocket_idle_seconds:.0f} s",
    ]
