"""Exclude `projects/` from collection: its files work only in a copy of the repository."""

collect_ignore = ["projects"]
