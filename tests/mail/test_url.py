"""SMTP_URL: its scheme selects the encryption, and no error message repeats the URL."""

import pytest
from pydantic import SecretStr, ValidationError

from app.mail.url import SMTPServer, check_sender, parse_smtp_url
from tests.conftest import make_settings

VALID = {
    "smtp://mail": SMTPServer("mail", 25, "none", None, None),
    "smtp://127.0.0.1:1025/": SMTPServer("127.0.0.1", 1025, "none", None, None),
    "smtp://[::1]:2525": SMTPServer("::1", 2525, "none", None, None),
    "smtps://u%40x:p%2Fw@mail.example.org": SMTPServer("mail.example.org", 465, "tls", "u@x", "p/w"),
    "smtp+starttls://u:p@mail.example.org": SMTPServer("mail.example.org", 587, "starttls", "u", "p"),
}
INVALID = [
    "",
    "mail.example.org",
    "http://hunter2@mail",
    "smtps://",
    "smtps://u:hunter2@mail:port",
    "smtps://u:hunter2@mail:70000",
    "smtps://u:hunter2/x@mail",
    "smtps://u:hunter2?@mail",
    "smtps://u:hunter2#@mail",
    "smtps://u:hunter2@[mail",
    "smtps://u:hunter2@mail/path",
    "smtps://u:hunter2@mail?starttls=1",
    "smtps://hunter2@mail",
    "smtp://u:hunter2@mail",
]


@pytest.mark.parametrize("url", VALID)
def test_url_is_parsed(url: str) -> None:
    assert parse_smtp_url(url) == VALID[url]


@pytest.mark.parametrize("url", INVALID)
def test_invalid_url_is_rejected_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make_settings(smtp_url=url)

    assert "smtp_url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_url_with_a_password_is_not_in_the_repr_of_the_settings() -> None:
    settings = make_settings(smtp_url="smtps://user:hunter2@mail")

    assert "hunter2" not in repr(settings)
    assert settings.smtp_url == SecretStr("smtps://user:hunter2@mail")


@pytest.mark.parametrize("sender", ["no-reply@example.org", "Example App <no-reply@example.org>"])
def test_sender_may_have_a_name(sender: str) -> None:
    assert check_sender(sender) == sender


@pytest.mark.parametrize(
    "sender",
    ["", "example.org", "a@b@example.org", "A <a@example.org>\r\nBcc: b@example.org", "A\r\nB <a@example.org>"],
)
def test_invalid_sender_is_rejected(sender: str) -> None:
    with pytest.raises(ValueError, match="must be like"):
        check_sender(sender)


def test_repr_of_a_server_hides_the_password() -> None:
    server = parse_smtp_url("smtps://ann:s3cret@mail.example.org")

    assert "mail.example.org" in repr(server)
    assert "s3cret" not in repr(server)
