"""The web edge: bytes in, bytes out; every rule lives below it."""
