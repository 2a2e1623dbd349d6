"""Programs to begin with: each trains something small, is read in minutes, and is run by a test."""
