"""The inside of the onion: from a route to a backend and back."""
