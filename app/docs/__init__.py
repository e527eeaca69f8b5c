"""The API's own documentation."""
