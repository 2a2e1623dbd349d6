"""What people need who write a tier of their own: the conformance suite that ours pass (leptonstore.testing.tiers), and a real
S3 server on loopback (leptonstore.testing.seaweed)."""
