"""Item catalogs: named, durable sets of items, and the snapshots of them that are searched.

catalog.py batch.py payload.py    the nouns, and what is refused
filter.py                         conditions on payload fields, checked against what a catalog declares
filter_mask.py filter_sql.py      the same conditions over columns in memory, and over the file
database.py writer.py             one catalog's file; the thread that commits waiting changes in groups
columns.py segment.py snapshot.py index.py compaction.py    what is searched: immutable parts, merged in the background
image.py imaging.py               the index in a file of its own; the thread that makes it
loading.py inspection.py          what is read and checked at start; what is checked behind searches
scanner.py diversity.py           scores and the best of them; choosing unlike ones
registry.py lock.py store.py      which names stand for which files; one process at a time; the whole
"""
