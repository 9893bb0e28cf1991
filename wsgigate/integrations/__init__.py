"""What the servers and frameworks around a gateway need from it."""
