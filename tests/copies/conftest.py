"""Exclude `projects/` from test collection, because its files work only in a copy of the repository."""

collect_ignore = ["projects"]
