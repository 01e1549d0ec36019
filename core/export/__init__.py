"""Writing what was trained in the formats of other programs: one file per format."""
