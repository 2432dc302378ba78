"""Settings that a user may give: how they are read, checked and kept as text."""
