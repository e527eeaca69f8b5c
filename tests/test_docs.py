"""The README, .env.example and SECURITY.md agree with the settings, the code, the tests and the dependencies."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.main import create_app
from app.settings import EXAMPLE_SECRET_KEY, Settings, load_settings
from tests.conftest import ROOT, make_settings
from tests.readme import section


def default(info: FieldInfo) -> str:
    """Return a setting's default as it would be written in the environment. It is empty if there is none."""
    value = info.get_default()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value)


def settings_table() -> str:
    """Return the README's table of settings."""
    rows = [
        f"| `{name.upper()}` | {f'`{default(info)}`' if default(info) else ''} | {info.description} |"
        for name, info in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def env_example() -> str:
    """Return the contents of .env.example."""
    lines = ["# Copy this file to .env. Lines that are commented out show the defaults.", ""]
    for name, info in Settings.model_fields.items():
        is_secret_key = name == "secret_key"
        assignment = f"{name.upper()}={EXAMPLE_SECRET_KEY if is_secret_key else default(info)}"
        lines += [f"# {info.description}", assignment if is_secret_key else f"# {assignment}", ""]
    return "\n".join(lines)


def test_settings_have_descriptions() -> None:
    assert all(info.description for info in Settings.model_fields.values())


def test_readme_contains_the_table_of_settings() -> None:
    assert settings_table() in section("Settings"), f"README.md should say:\n{settings_table()}"


def test_example_file_lists_every_setting() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), f".env.example should say:\n{env_example()}"


def test_example_file_is_valid_in_development(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    monkeypatch.chdir(tmp_path)

    settings = load_settings()

    assert settings.environment == "development"
    assert settings.secret_key.get_secret_value() == EXAMPLE_SECRET_KEY


@pytest.mark.parametrize(
    ("file", "heading"), [("docker-compose.yml", "Run it"), ("docker-compose.production.yml", "Deploy it")]
)
def test_readme_names_the_variables_of_compose_files(file: str, heading: str) -> None:
    variables = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", (ROOT / file).read_text()))

    assert variables
    for variable, value in variables.items():
        assert f"`{variable}` ({value})" in section(heading), f"{file} uses {variable}"


def test_tour_mentions_every_part_of_the_application() -> None:
    parts = {path.name for path in (ROOT / "app").iterdir() if not path.name.startswith("__")}
    features = {path.parent.name for path in (ROOT / "app").glob("*/router.py")}  # optional

    mentioned = set(re.findall(r"\]\(app/([\w.]+)\)", section("Read it")))

    assert mentioned | features == parts


def test_diagram_shows_the_middleware_in_order() -> None:
    settings = make_settings(cors_origins=["https://example.com"], allowed_hosts=["example.com"])
    modules = [middleware.cls.__module__ for middleware in create_app(settings).user_middleware]
    names = [module.rpartition(".")[2].replace("_", " ") for module in modules]

    (note,) = re.findall(r"Note over middleware: (.+)", section("Read it"))

    # The middleware for startup errors handles no requests.
    assert ["startup errors", *re.split(r",(?: |<br>)", note)] == names


def test_what_happens_when_links_are_names_of_tests() -> None:
    answers = re.findall(r"\| \[(.+?)\]\(((?:packages/\w+/)?tests/.+?)\) \|", section("What happens when…"))

    assert len(answers) == section("What happens when…").count("\n| ") - 1
    for answer, path in answers:
        name = re.sub(r"\W+", "_", answer.lower().replace("'", ""))
        assert f"def test_{name}(" in (ROOT / path).read_text(), f"{path} has no test_{name}"


def test_dependencies_have_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # The packages in `peers` are those that the test suites of other projects need.
    groups = [group for name, group in project["dependency-groups"].items() if name != "peers"]
    dependencies = {
        re.match(r"[\w-]+", dependency)[0]  # type: ignore[index]  # each begins with its name
        for group in (project["project"]["dependencies"], *groups)
        for dependency in group
    }

    rows = re.findall(r"^\| (\w.+?) \|", section("Why these packages"), re.MULTILINE)

    assert {name for row in rows for name in row.split(", ")} == dependencies


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings on GitHub."""
    headings = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", ".github/CONTRIBUTING.md"])
def test_links_lead_to_existing_files_and_headings(name: str) -> None:
    page = ROOT / name
    # On GitHub, a repository's own pages are this many levels above its files.
    up = "../" * (1 + len(Path(name).parts))
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)

    for link in re.findall(r'(?:\]\(|src=")(?!https?:)(.+?)[)"]', text):
        if link == f"{up}security/advisories/new":
            continue
        if workflow := re.fullmatch(rf"{re.escape(up)}actions/(workflows/\w+\.yml)(/badge\.svg)?", link):
            assert (ROOT / ".github" / workflow[1]).exists(), f"{name}: {link}"
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}"


def test_security_policy_names_existing_tests() -> None:
    proofs = re.findall(r"`((?:packages/\w+/)?tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())

    assert len(proofs) > 20
    for file, name in proofs:
        assert not name or f"def {name}(" in (ROOT / file).read_text(), name
        assert "def test_" in (ROOT / file).read_text(), file
