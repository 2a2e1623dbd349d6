"""Statistics of columns from sketches that merge: a block of pages is read once, and what was learnt of it is kept under its digest."""
