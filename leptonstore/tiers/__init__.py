"""Places where packs live, behind small roles.

roles      PackReader, PackWriter, PackPruner, HomeReader, HomeWriter: the protocols and their contracts
chunks     ChunkReader, ChunkFinder: the roles of those who give chunks by digest
durable    the one way to write a file so that it survives power loss
local      a directory
open       URL -> tier
"""
