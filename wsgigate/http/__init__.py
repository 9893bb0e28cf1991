"""HTTP and WSGI semantics: header fields, targets, bodies, responses and problem documents."""
