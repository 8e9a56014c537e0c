"""Deterministic parts of machine learning."""
