"""Checks: operations that look for rows that spoil training; registry.py lists them by name, check.py says what all have in common."""
