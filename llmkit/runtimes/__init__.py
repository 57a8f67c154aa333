"""One adapter per engine; each imports its engine only inside its own module."""
