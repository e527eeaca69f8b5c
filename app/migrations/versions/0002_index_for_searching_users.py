"""An index for searching users by any part of their address or name."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite has nothing of the kind, and searches all users
    # Comes with PostgreSQL, and whoever may create something in the database may create it. Where that is not the role
    # that migrates, create it beforehand: then this does nothing.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    # Nobody can write users while it is made, 2.5 s for each 100,000 when it was measured. Where there are many, make
    # it beforehand and CONCURRENTLY, under this name: then this, too, does nothing. Done here, that would wait for the
    # transactions of other processes that are about to migrate, and they for this one.
    op.create_index(
        "ix_users_search",
        "users",
        ["email", "full_name"],
        postgresql_using="gin",
        postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
        if_not_exists=True,
    )


def downgrade() -> None:
    # The extension stays: something else may use it by now.
    op.drop_index("ix_users_search", "users", if_exists=True)
