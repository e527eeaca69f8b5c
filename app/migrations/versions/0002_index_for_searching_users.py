"""An index for searching users by any part of their email address or name."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite has no such index, and searches all users
    # The extension is part of PostgreSQL, and needs the CREATE privilege on the database. Without it, create the
    # extension beforehand as another role. This statement then does nothing.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    # Writes to users wait while the index is created (measured: 2.5 s per 100,000 users). If there are many, create
    # it beforehand with CONCURRENTLY and this name. This statement then does nothing. Here, CONCURRENTLY would wait for
    # the transactions of other processes that want to migrate, while they wait for this one.
    op.create_index(
        "ix_users_search",
        "users",
        ["email", "full_name"],
        postgresql_using="gin",
        postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
        if_not_exists=True,
    )


def downgrade() -> None:
    # The extension stays, because something else may use it.
    op.drop_index("ix_users_search", "users", if_exists=True)
