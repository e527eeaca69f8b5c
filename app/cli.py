"""The commands of `python -m app`: migrate, create-superuser, openapi."""

import argparse
import asyncio
import getpass
import json
import sys

from pydantic import ValidationError

from app.database import create_engine, create_sessions
from app.docs.openapi import build_openapi
from app.errors import StartupError
from app.factory import create_app
from app.lifespan import create_passwords, database_name, prepare
from app.server.logs import configure_logging
from app.settings import Settings, load_settings
from app.users.errors import EmailTaken
from app.users.schemas import UserCreate
from app.users.service import create_user


def main() -> None:
    """Runs the command that the arguments name. Ends with status 1 and one line where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Commands of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database's schema up to date")
    superuser = commands.add_parser(
        "create-superuser",
        help="create a user who may administer all others",
        description="Asks for what is not given. The password is asked for, or read from standard input.",
    )
    superuser.add_argument("--email")
    superuser.add_argument("--full-name")
    commands.add_parser("openapi", help="print the OpenAPI document")
    arguments = parser.parse_args()

    settings = load_settings()
    configure_logging(settings)
    try:
        match arguments.command:
            case "migrate":
                asyncio.run(_migrate(settings))
            case "create-superuser":
                asyncio.run(_create_superuser(settings, _read_user(arguments.email, arguments.full_name)))
            case _:  # openapi
                sys.stdout.write(json.dumps(build_openapi(create_app(settings)), indent=2, ensure_ascii=False) + "\n")
    except StartupError as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, EOFError):  # Ctrl-C or Ctrl-D at a question
        sys.exit(130)  # as a shell reports a command that Ctrl-C ended
    except EmailTaken:
        sys.exit(
            "That address has an account already, which is left as it is. "
            "A superuser can promote it; create one with another address if there is none."
        )


def _read_user(email: str | None, full_name: str | None) -> UserCreate:
    """Asks on a terminal for what is missing; without one, the password is the first line of standard input."""
    if sys.stdin.isatty():
        email = email or input("Email: ")
        full_name = full_name or input("Full name: ")
        password = getpass.getpass()
        if getpass.getpass("Password, once more: ") != password:
            sys.exit("The passwords differ.")
    elif email and full_name and (line := sys.stdin.readline()):
        password = line.rstrip("\r\n")
    else:
        sys.exit("Without a terminal, give --email and --full-name, and the password on standard input.")
    try:
        return UserCreate(email=email, password=password, full_name=full_name)
    except ValidationError as error:
        sys.exit("\n".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()))


async def _migrate(settings: Settings) -> None:
    database = settings.database.model_copy(update={"migrate": True})
    await prepare(settings.model_copy(update={"database": database}))


async def _create_superuser(settings: Settings, data: UserCreate) -> None:
    await prepare(settings)
    engine = create_engine(settings.database)
    try:
        async with create_sessions(engine)() as session:
            await create_user(session, create_passwords(settings.auth), data, is_superuser=True)
            await session.commit()
            sys.stdout.write(f"{data.email} is a superuser now, in the database at {database_name(settings)}.\n")
    finally:
        await engine.dispose()
