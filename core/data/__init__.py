"""From a file to batches: readers -> formats -> records -> template -> batching.

Importing this package, or anything in it but `template` (transformers, lazily) and `batching` (torch), is torch-free.
"""

from core.data.records import Message, Record

__all__ = ["Message", "Record"]
