"""The tabs of the page, one file each; each is a class with `layout` (components) and `wire` (events)."""
