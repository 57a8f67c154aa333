"""Benchmarks of llmkit against its peers; run them with scripts/bench."""
