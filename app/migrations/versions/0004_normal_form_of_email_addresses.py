"""The normal form of email addresses: lowercased one character at a time, and composed (Unicode NFC)."""

from logging import getLogger
from unicodedata import normalize

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

users = sa.table("users", sa.column("id", sa.BigInteger), sa.column("email", sa.String))


def upgrade() -> None:
    connection = op.get_bind()
    candidates = sa.select(users.c.id, users.c.email)
    if connection.dialect.name == "postgresql":  # ASCII addresses are in normal form
        candidates = candidates.where(sa.func.octet_length(users.c.email) > sa.func.char_length(users.c.email))
    for user_id, email in connection.execute(candidates).all():
        normal = normalize("NFC", "".join(character.lower() for character in normalize("NFC", email)))
        if normal == email:
            continue
        if other_id := connection.scalar(sa.select(users.c.id).where(users.c.email == normal)):
            # Keep both rows. The user whose address is not in normal form cannot log in until a superuser changes the
            # address.
            getLogger("alembic").warning("users %d and %d have the same email address", user_id, other_id)
        else:
            connection.execute(users.update().where(users.c.id == user_id).values(email=normal))


def downgrade() -> None:
    pass  # the previous release can read these addresses, too
