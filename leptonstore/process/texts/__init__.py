"""What checks and operations on texts are made of.

column.py      which column is meant, and its characters as one array
characters.py  what each Unicode character is to them: part of a word, a word of its own, nothing
shingles.py    a text -> the set of its shingles (runs of words or characters), as 32-bit hashes
minhash.py     such a set -> a signature, and the keys by which likely pairs are found (LSH)
pairs.py       likely pairs, verified; groups
pii.py         what is personal in a text, found in linear time
"""
