"""The shop of the site: its orders, their admin and their API."""
