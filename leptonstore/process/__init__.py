"""Pipelines over a dataset version: clean, analyse, preprocess, report.

Each reads a `Dataset` in one bounded-memory stream; those that change rows write a new version whose parent is the
one they read, so nothing is ever lost. Import the module that is needed: `from leptonstore.process import clean`.
"""
