"""Security stamps of users, and the overlap of refresh tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    # During a rollout, the previous release still inserts users, so the column needs a default. SQLite allows only a
    # constant default. This is enough, because there are no rollouts with SQLite.
    default = sa.func.gen_random_uuid() if is_postgresql else sa.text("'00000000000000000000000000000000'")
    op.add_column("users", sa.Column("security_stamp", sa.Uuid, server_default=default, nullable=False))
    op.add_column("refresh_tokens", sa.Column("security_stamp", sa.Uuid))
    op.add_column("refresh_tokens", sa.Column("previous_secret_hash", sa.LargeBinary(32)))
    op.add_column("refresh_tokens", sa.Column("rotated_at", sa.DateTime(timezone=True)))
    if is_postgresql:
        # The previous release needs this column. Drop it in the release after this one.
        for table in ("users", "refresh_tokens"):
            op.alter_column(table, "credentials_version", server_default="1")
        op.execute(
            "UPDATE refresh_tokens SET security_stamp = users.security_stamp FROM users"
            " WHERE users.id = refresh_tokens.user_id"
            " AND users.credentials_version = refresh_tokens.credentials_version"
        )
    else:
        op.execute("UPDATE users SET security_stamp = lower(hex(randomblob(16)))")
        op.execute(
            "UPDATE refresh_tokens SET security_stamp = (SELECT security_stamp FROM users"
            " WHERE users.id = user_id AND users.credentials_version = refresh_tokens.credentials_version)"
        )
        for table in ("users", "refresh_tokens"):
            op.drop_column(table, "credentials_version")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in ("users", "refresh_tokens"):
            op.alter_column(table, "credentials_version", server_default=None)
    else:
        for table in ("users", "refresh_tokens"):
            op.add_column(table, sa.Column("credentials_version", sa.Integer, server_default="1", nullable=False))
    for column in ("rotated_at", "previous_secret_hash", "security_stamp"):
        op.drop_column("refresh_tokens", column)
    op.drop_column("users", "security_stamp")
