"""Sandboxes: running strangers' programs."""
