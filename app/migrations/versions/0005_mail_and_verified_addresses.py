"""The email outbox, verified addresses, and the clients of logins."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Existing users count as verified. Otherwise REQUIRE_VERIFIED_EMAIL would lock them out. The default also applies
    # to users that the previous release adds during a rollout. PostgreSQL adds a column with a constant default without
    # rewriting the table.
    op.add_column("users", sa.Column("email_verified", sa.Boolean, server_default=sa.true(), nullable=False))
    op.add_column("users", sa.Column("pending_email", sa.String(254)))
    op.add_column("refresh_tokens", sa.Column("ip_address", sa.String(45)))
    op.add_column("refresh_tokens", sa.Column("user_agent", sa.String(256)))
    op.create_table(
        "mails",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.String(50), nullable=False),
        sa.Column("recipient", sa.String(254), nullable=False),
        sa.Column("context", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mails"),
    )
    op.create_index("ix_mails_next_attempt_at", "mails", ["next_attempt_at"])


def downgrade() -> None:
    op.drop_table("mails")
    for table, columns in (
        ("refresh_tokens", ("user_agent", "ip_address")),
        ("users", ("pending_email", "email_verified")),
    ):
        for column in columns:
            op.drop_column(table, column)
