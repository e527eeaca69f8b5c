"""Indexes for finding the rows of expired logins and tokens, to delete them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = ("refresh_tokens", "account_tokens")


def upgrade() -> None:
    for table in TABLES:
        # Creating the index blocks writes. If there are millions of rows, create it beforehand, as in migration 0002,
        # and check that it is valid.
        op.create_index(f"ix_{table}_expires_at", table, ["expires_at"], if_not_exists=True)


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_expires_at", table, if_exists=True)
