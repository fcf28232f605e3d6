"""Protocols that clients already speak: thin adapters, each from a foreign request to `issue` and back."""
