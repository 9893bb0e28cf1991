"""The HTTP/1.1 client: a ``requests`` transport adapter, its connections, response parsing."""
