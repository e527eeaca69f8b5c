"""The commands of `python -m app`: migrate, create-superuser, set-password, end-logins, openapi."""

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import create_engine, database_location
from app.errors import AppError, StartupError
from app.main import app, settings
from app.security import Passwords
from app.startup import prepare_database
from app.users import service
from app.users.errors import EmailTaken
from app.users.schemas import Email, Password, UserCreate

log = structlog.stdlib.get_logger("app")


def main() -> None:
    """Run the subcommand given on the command line. If it fails, report the reason and exit with status 1."""
    arguments = _create_parser().parse_args()
    try:
        match arguments.command:
            case "migrate":
                asyncio.run(_migrate())
            case "create-superuser":
                asyncio.run(_create_superuser(_read_user(arguments.email, arguments.full_name)))
            case "set-password":
                asyncio.run(_set_password(_read_new_password(arguments.email)))
            case "end-logins":
                asyncio.run(_log_out_everywhere(_Account(email=arguments.email)))
            case _:  # openapi
                sys.stdout.write(json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n")
    except EmailTaken:
        sys.exit(
            "A user with this address already exists, and was not changed. "
            "A superuser can promote them. If there is no superuser, create one with another address."
        )
    except ValidationError as error:
        sys.exit("\n".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()))
    except StartupError as error:  # logged instead of printed, because `migrate` usually runs in a container
        log.critical(str(error))
        sys.exit(1)
    except AppError as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, EOFError):  # Ctrl-C or Ctrl-D at a prompt
        sys.exit(130)  # the status that shells report after Ctrl-C


def _create_parser() -> argparse.ArgumentParser:
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
    password = commands.add_parser(
        "set-password",
        help="set a user's password and log the user out everywhere",
        description="The password is prompted for, or without a terminal read from standard input.",
    )
    password.add_argument("email")
    commands.add_parser(
        "end-logins", help="log a user out everywhere, and invalidate links in emails to the user"
    ).add_argument("email")
    commands.add_parser("openapi", help="print the OpenAPI document")
    return parser


class _Account(BaseModel):
    email: Email


class _NewPassword(_Account):
    password: Password


def _read_user(email: str | None, full_name: str | None) -> UserCreate:
    """Return the new user's data. Prompt for missing values.

    If standard input is not a terminal, read the password from it, and exit if the email or the full name is missing.
    """
    if sys.stdin.isatty():
        email = email or input("Email: ")
        full_name = full_name or input("Full name: ")
    elif not (email and full_name):
        sys.exit("Without a terminal, pass --email, --full-name, and the password on standard input.")
    return UserCreate(email=email, password=_read_password(), full_name=full_name)


def _read_new_password(email: str) -> _NewPassword:
    return _NewPassword(email=email, password=_read_password())


def _read_password() -> str:
    if not sys.stdin.isatty():
        if line := sys.stdin.readline():
            return line.rstrip("\r\n")
        sys.exit("Without a terminal, pass the password on standard input.")
    password = getpass.getpass()
    if getpass.getpass("Repeat the password: ") != password:
        sys.exit("The passwords do not match.")
    return password


@asynccontextmanager
async def _open_session() -> AsyncIterator[AsyncSession]:
    await prepare_database(settings)
    engine = create_engine(settings)
    try:
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


async def _migrate() -> None:
    await prepare_database(settings.model_copy(update={"database_migrate": True}))


async def _create_superuser(data: UserCreate) -> None:
    async with _open_session() as session:
        await service.create_user(session, Passwords(settings), data, is_superuser=True)
    sys.stdout.write(f"{data.email} is now a superuser, in the database at {database_location(settings)}.\n")


async def _set_password(data: _NewPassword) -> None:
    async with _open_session() as session:
        await service.set_password(session, Passwords(settings), data.email, data.password)
    sys.stdout.write(f"The password of {data.email} has been changed, and the user is logged out everywhere.\n")


async def _log_out_everywhere(account: _Account) -> None:
    async with _open_session() as session:
        await service.log_out_everywhere(session, account.email)
    sys.stdout.write(f"{account.email} is logged out everywhere.\n")
