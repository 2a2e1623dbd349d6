"""What people need who write a tier of their own: the conformance suite that ours pass (leptonstore.testing.tiers)."""
