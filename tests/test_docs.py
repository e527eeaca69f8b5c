"""What the README and .env.example say is so: about the settings, the tests, the dependencies; and where links lead."""

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
    """A setting's default as it would be written in the environment; empty where it is not set or random."""
    value = None if info.default_factory else info.get_default()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value)


def settings_table() -> str:
    """The README's table."""
    rows = [
        f"| `{variable}` | {f'`{default(info)}`' if default(info) else ''} | {info.description} |"
        for variable, info in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def env_example() -> str:
    """The file .env.example."""
    lines = ["# Copy this file to .env. What is commented out is the default.", ""]
    for variable, info in Settings.model_fields.items():
        value = EXAMPLE_SECRET_KEY if variable == "SECRET_KEY" else default(info)
        assignment = f"{variable}={value}" if variable == "SECRET_KEY" else f"# {variable}={value}"
        lines += [f"# {info.description}", assignment, ""]
    return "\n".join(lines)


def test_every_setting_is_described() -> None:
    assert all(info.description for info in Settings.model_fields.values())


def test_the_readme_has_the_table_of_settings() -> None:
    assert settings_table() in section("Settings"), f"README.md should say:\n{settings_table()}"


def test_the_example_file_lists_every_setting() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), f".env.example should say:\n{env_example()}"


def test_the_example_file_is_a_start_for_development(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SETTINGS_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    monkeypatch.chdir(tmp_path)

    settings = load_settings()

    assert settings.environment == "development"
    assert settings.secret_key.get_secret_value() == EXAMPLE_SECRET_KEY


@pytest.mark.parametrize(
    ("file", "heading"), [("docker-compose.yml", "Run it"), ("docker-compose.production.yml", "Deploy it")]
)
def test_each_variable_that_compose_takes_is_named(file: str, heading: str) -> None:
    variables = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", (ROOT / file).read_text()))

    assert variables
    for variable, value in variables.items():
        assert f"`{variable}` ({value})" in section(heading), f"{file} takes {variable}"


def test_the_tour_leaves_nothing_out() -> None:
    parts = {path.name for path in (ROOT / "app").iterdir() if not path.name.startswith("__")}
    features = {path.parent.name for path in (ROOT / "app").glob("*/router.py")}  # which need not be named each

    toured = set(re.findall(r"\]\(app/([\w.]+)\)", section("Read it")))

    assert toured | features == parts


def test_the_diagram_has_the_middleware_in_its_order() -> None:
    http = HTTPSettings(cors_origins=["https://example.com"], allowed_hosts=["example.com"])
    modules = [middleware.cls.__module__ for middleware in create_app(make_settings(http=http)).user_middleware]
    names = [module.rpartition(".")[2].replace("_", " ") for module in modules]

    (note,) = re.findall(r"Note over middleware: (.+)", section("Read it"))

    # What ends a failed start sees no request.
    assert ["startup errors", *re.split(r",(?: |<br>)", note)] == names


def test_each_answer_to_what_happens_when_is_the_name_of_a_test() -> None:
    answers = re.findall(r"\| \[(.+?)\]\((tests/.+?)\) \|", section("What happens when…"))

    assert len(answers) == section("What happens when…").count("\n| ") - 1
    for answer, path in answers:
        name = re.sub(r"\W+", "_", answer.lower().replace("'", ""))
        assert f"def test_{name}(" in (ROOT / path).read_text(), f"{path} has no test_{name}"


def test_every_dependency_is_given_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"].values()
    dependencies = {
        re.match(r"[\w-]+", dependency)[0]  # type: ignore[index]  # each begins with its name
        for group in (project["project"]["dependencies"], *groups)
        for dependency in group
    }

    rows = re.findall(r"^\| (\w.+?) \|", section("Why these packages"), re.MULTILINE)

    assert {name for row in rows for name in row.split(", ")} == dependencies


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", ".github/CONTRIBUTING.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    # From here a repository's own pages on GitHub are that far up, beside its files.
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


def test_what_the_security_policy_names_as_proof_exists() -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())

    assert len(proofs) > 20
    for file, name in proofs:
        assert not name or f"def {name}(" in (ROOT / file).read_text(), name
        assert "def test_" in (ROOT / file).read_text(), file
