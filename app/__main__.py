"""Entry point of `python -m app`."""

from app.logging import exit_with_error

try:
    from app.cli import main
except SystemExit as error:  # the settings are invalid
    exit_with_error(str(error))

main()
