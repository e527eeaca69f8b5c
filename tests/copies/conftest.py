"""The files of the feature in `projects/` belong into a copy."""

collect_ignore = ["projects"]
