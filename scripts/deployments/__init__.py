"""What `scripts/formats` does: deployment formats one by one, each in an environment of its own."""
