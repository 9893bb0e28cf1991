"""Authentication: JSON Web Tokens and bearer tokens."""
