"""One thin file per command; imported only when that command runs."""
