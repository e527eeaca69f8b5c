"""Indexes for finding the rows of expired logins and tokens, to delete them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = ("refresh_tokens", "account_tokens")


def upgrade() -> None:
    for table in TABLES:
        # Creating an index blocks writes. If there are millions of rows, create the index beforehand, under this name
        # and with CONCURRENTLY. This statement is then a no-op, even if that left an invalid index. So check it.
        op.create_index(f"ix_{table}_expires_at", table, ["expires_at"], if_not_exists=True)


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_expires_at", table, if_exists=True)
