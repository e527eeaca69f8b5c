"""Projects and their members, documents and reports."""
