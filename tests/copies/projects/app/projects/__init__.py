"""Projects, their members, and what belongs to them."""
