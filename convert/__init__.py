"""From a checkpoint to a file: reading, planning, executing."""
