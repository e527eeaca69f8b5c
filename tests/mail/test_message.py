"""A recipient who parses a message gets exactly the text that was written."""

from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from uuid import UUID

import pytest
from email_validator import EmailNotValidError

from app import TITLE
from app.mail.message import Content, build_message
from app.mail.models import Mail
from app.users.schemas import normalize_email
from tests.people import TOO_LONG_IN_LOWER_CASE
from tests.smtp_server import html_of, text_of

ID = UUID("6f1c2d3e-4b5a-4978-8695-a4b3c2d1e0f9")


def build(recipient: str = "ann@example.com", *, subject: str = "Hello", text: str = "Hello.") -> EmailMessage:
    """Build a message, serialize it, and parse it as the recipient's email client would."""
    mail = Mail(id=ID, kind="test", recipient=recipient, context={}, created_at=datetime(2026, 1, 2, tzinfo=UTC))
    message = build_message(mail, Content(subject, text), "Éva <no-reply@example.org>")
    return message_from_bytes(bytes(message), _class=EmailMessage, policy=default)


def test_message_that_is_built_twice_has_the_same_id_and_date() -> None:
    for message in (build(), build()):
        assert message["Message-ID"] == f"<{ID}@example.org>"
        assert message["Date"] == "Fri, 02 Jan 2026 00:00:00 +0000"


@pytest.mark.parametrize("subject", [f"Erősítse meg az új email-címét a szolgáltatásban: {TITLE}", "é" * 200])
def test_long_subject_with_accents_is_parsed_unchanged(subject: str) -> None:
    """In Python versions before 3.13, the `email` package may drop a space when it folds such a subject."""
    message = build(subject=subject)

    assert message["Subject"] == subject
    assert message["From"] == "Éva <no-reply@example.org>"


def test_internationalized_domain_is_encoded() -> None:
    assert build("ann@münchen.example")["To"] == "ann@xn--mnchen-3ya.example"


def test_text_is_escaped_in_the_html() -> None:
    message = build(text='a < b & "c"\n\nhttps://example.org/?a=1&b=2#token=x\n\nhttps://x.org "quoted\n')

    assert text_of(message).startswith('a < b & "c"\n')
    assert "<p>a &lt; b &amp; &quot;c&quot;</p>" in html_of(message)
    link = "https://example.org/?a=1&amp;b=2#token=x"
    assert f'<p><a href="{link}">{link}</a></p>' in html_of(message)


@pytest.mark.parametrize("subject", ["Hello\r\nBcc: bob@example.com", "Hello\nBcc: bob@example.com"])
def test_line_break_in_the_subject_is_an_error(subject: str) -> None:
    with pytest.raises(ValueError, match="linefeed"):
        build(subject=subject)


@pytest.mark.parametrize(
    "recipient",
    [
        *map(normalize_email, TOO_LONG_IN_LOWER_CASE),
        "ann@example.com\r\nBcc: bob@example.com",
        "ann\n@example.com",
        "\ud800@example.com",
        "ann@\ud800.example.com",
        "ann",
    ],
)
def test_invalid_recipient_is_an_error(recipient: str) -> None:
    with pytest.raises(EmailNotValidError):
        build(recipient)
