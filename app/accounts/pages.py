"""The static pages that open when a user clicks a link in an email.

The settings `password_reset_url` and `email_verification_url` replace these pages with other ones.

The token is in the fragment of the URL, which browsers do not send to the server. Opening a page must not change
anything, because email scanners also open links.
"""

from pathlib import Path

from fastapi import Response

from app.errors import NotFound

_FOLDER = Path(__file__).with_name("static")
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
# Maps the last segment of each file's URL to the file's content and media type. The URLs omit the `.html` suffix.
_FILES = {
    path.name.removesuffix(".html"): (path.read_bytes(), _MEDIA_TYPES[path.suffix])
    for path in _FOLDER.iterdir()
    if path.suffix in _MEDIA_TYPES
}
# Block inline scripts, inline styles and requests to other origins. With `form-action 'none'`, only JavaScript can
# submit the forms.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def read_page(name: str) -> Response:
    """Return one of the static files: the pages that emails link to, their script and their style sheet.

    Raises:
        NotFound: There is no such file.
    """
    if name not in _FILES:
        raise NotFound
    body, media_type = _FILES[name]
    return Response(body, media_type=media_type, headers={"Content-Security-Policy": _POLICY})
