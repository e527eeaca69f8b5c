"""Build an email message from its text."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from html import escape
from typing import NamedTuple

from email_validator import validate_email as parse_email
from pydantic import validate_email

from app.mail.models import Mail

_HTML = """\
<!doctype html>
<html lang="en">
<body style="max-width: 36em; margin: auto; padding: 1em; font: 16px/1.5 sans-serif; overflow-wrap: anywhere">
{}
</body>
</html>
"""


class Content(NamedTuple):
    """The subject and the text of an email. Paragraphs are separated by blank lines."""

    subject: str
    text: str


def build_message(mail: Mail, content: Content, sender: str) -> EmailMessage:
    """Build an email message. If an email is sent twice, both messages have the same Message-ID and date.

    Args:
        mail: The row in the outbox.
        content: The subject and the text.
        sender: The sender's address, optionally preceded by a name.

    Raises:
        EmailNotValidError: An address is not valid.
        ValueError: The subject contains a line feed or a carriage return.
    """
    name, address = validate_email(sender)
    user, domain = encode_domain(address).rsplit("@", 1)
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(name if name != user else "", user, domain)
    message["To"] = Address("", *encode_domain(mail.recipient).rsplit("@", 1))
    message["Subject"] = content.subject
    message["Date"] = mail.created_at
    message["Message-ID"] = f"<{mail.id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: prevents out-of-office replies
    message.set_content(content.text)
    message.add_alternative(_HTML.format("\n".join(map(_render_paragraph, content.text.split("\n\n")))), subtype="html")
    return message


def encode_domain(address: str) -> str:
    """Encode the domain of an address as ASCII, because not every mail server accepts other characters.

    An address whose local part is not ASCII is returned unchanged.

    Raises:
        EmailNotValidError: The address is not valid.
    """
    return parse_email(address, check_deliverability=False).ascii_email or address


def _render_paragraph(text: str) -> str:
    """Render a paragraph as HTML. A paragraph that is a URL becomes a link."""
    html = escape(text.strip())
    return f'<p><a href="{html}">{html}</a></p>' if html.startswith(("https://", "http://")) else f"<p>{html}</p>"
