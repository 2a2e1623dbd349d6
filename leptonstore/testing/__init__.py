"""What people need who write a tier, or a wrapper of a store, of their own: the conformance suites that ours pass (tiers, chunks), a tier
that fails on purpose (faults), a real S3 server on loopback (seaweed), and a link
that is made longer (slow_link)."""
