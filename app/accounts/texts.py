"""The plain texts of all emails about accounts.

The HTML versions are generated from these texts. In HTML, `$link` becomes a hyperlink.

The texts must not contain user input. Otherwise, anyone could send arbitrary text to the address of another person.
"""

from typing import NamedTuple


class Text(NamedTuple):
    """The subject and the paragraphs of an email, with placeholders.

    `$title` is the name of the service. `write_link` in mails.py fills in the other placeholders.
    """

    subject: str
    paragraphs: str


LINK = """\
$link

The link works once, for $lifetime. Without a browser, send its token to POST $url:

$token
"""

TEXTS = {
    "password_reset": Text(
        "Set a new password",
        f"""\
A new password was requested for your account at $title. To set it, open this link:

{LINK}
If this was not you, ignore this mail: your password has not changed.
""",
    ),
    "invitation": Text(
        "You are invited to $title",
        f"""\
An account at $title was created for you. To set its password, open this link:

{LINK}""",
    ),
    "email_verification": Text(
        "Verify your email address",
        f"""\
This address was entered for an account at $title. To verify it, open this link, and enter the password of the account:

{LINK}
If this was not you, ignore this mail.
""",
    ),
    "email_change": Text(
        "Confirm your new email address",
        f"""\
This address was entered for an account at $title, in place of its present one. To confirm it, open this link, and enter
the password of the account:

{LINK}
If this was not you, ignore this mail.
""",
    ),
    "email_change_requested": Text(
        "A new email address was entered for your account",
        """\
A new email address was entered for your account at $title. It takes effect when it is confirmed.

If this was not you, ask for a new password now, and set it. That also cancels the change.
""",
    ),
    "email_changed": Text(
        "The email address of your account was changed",
        """\
Your account at $title has a new email address. No more mails about it are sent to this one.
""",
    ),
    "password_changed": Text(
        "Your password was changed",
        """\
The password of your account at $title was changed, and you have been logged out everywhere.

If this was not you, ask for a new password now, and set it.
""",
    ),
}
