"""The history of the tables: one file a revision under `versions`, applied in order by `runner`."""
