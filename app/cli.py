"""The commands of `python -m app`: migrate, create-superuser, openapi."""

import argparse
import asyncio
import getpass
import json
import sys

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import create_engine, database_name
from app.errors import StartupError
from app.main import app, settings
from app.security import Passwords
from app.settings import Settings
from app.startup import prepare_database
from app.users.errors import EmailTaken
from app.users.schemas import UserCreate
from app.users.service import create_user


def main() -> None:
    """Run the command given by the arguments. If it fails, exit with status 1 and one line."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Commands of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database's schema up to date")
    superuser = commands.add_parser(
        "create-superuser",
        help="create a user who may administer all others",
        description="Missing values are prompted for. Without a terminal, the password is read from standard input.",
    )
    superuser.add_argument("--email")
    superuser.add_argument("--full-name")
    commands.add_parser("openapi", help="print the OpenAPI document")
    arguments = parser.parse_args()

    try:
        match arguments.command:
            case "migrate":
                asyncio.run(_migrate(settings))
            case "create-superuser":
                asyncio.run(_create_superuser(settings, _read_user(arguments.email, arguments.full_name)))
            case _:  # openapi
                sys.stdout.write(json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n")
    except StartupError as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, EOFError):  # Ctrl-C or Ctrl-D at a question
        sys.exit(130)  # as a shell reports a command that Ctrl-C ended
    except EmailTaken:
        sys.exit(
            "A user with this address exists already, and is not changed. "
            "A superuser can promote it. If there is none, create one with another address."
        )


def _read_user(email: str | None, full_name: str | None) -> UserCreate:
    """Prompt for missing values on a terminal. Without one, the password is the first line of standard input."""
    if sys.stdin.isatty():
        email = email or input("Email: ")
        full_name = full_name or input("Full name: ")
        password = getpass.getpass()
        if getpass.getpass("Repeat the password: ") != password:
            sys.exit("The passwords do not match.")
    elif email and full_name and (line := sys.stdin.readline()):
        password = line.rstrip("\r\n")
    else:
        sys.exit("Without a terminal, pass --email, --full-name, and the password on standard input.")
    try:
        return UserCreate(email=email, password=password, full_name=full_name)
    except ValidationError as error:
        sys.exit("\n".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()))


async def _migrate(settings: Settings) -> None:
    await prepare_database(settings.model_copy(update={"database_migrate": True}))


async def _create_superuser(settings: Settings, data: UserCreate) -> None:
    await prepare_database(settings)
    engine = create_engine(settings)
    try:
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            await create_user(session, Passwords(settings), data, is_superuser=True)
        sys.stdout.write(f"{data.email} is now a superuser, in the database at {database_name(settings)}.\n")
    finally:
        await engine.dispose()
