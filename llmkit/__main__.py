"""`python -m llmkit` is the same as `llmkit`."""

from llmkit.cli import main

main()
