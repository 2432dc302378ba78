"""What a user may set, and how it is read, checked and kept as text."""
