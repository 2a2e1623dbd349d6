"""HTTP with bounds: what the storage daemon and the model server have in common.

A request's way: protocol.py (connection: numbers and times) -> guard.py (id, host, errors, log) -> the routes of who uses this -> bodies.py
(bytes in). refusal.py is what a client is told instead of an answer, limits.py has every bound, server.py starts and stops it all.

Needs starlette, uvicorn and h11, which extras of who uses it bring; nothing here is imported before there is a server to start.
"""
