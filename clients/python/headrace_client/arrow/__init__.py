"""Catalogs to and from Parquet (.parquet) and Arrow IPC files (.arrow, .feather, .ipc); needs pyarrow.

    from headrace_client import Client
    from headrace_client.arrow import export_catalog, import_catalog

    with Client("127.0.0.1:50051") as client:
        export_catalog(client, "wares", "wares.parquet")
        import_catalog(client, "wares.parquet", "copy-of-wares")

A file holds a row an item: `id` (string), `vector` (float32, a list of fixed size), `payload` (the JSON text as it is
stored, or null), and a typed column for each declared field, for other tools to read. The schema's metadata says what
the catalog holds, so that an import can make it. Files that other tools wrote need `id` and `vector` alone; without
`payload` every other column becomes a field of the payload.
"""

from headrace_client.arrow.exporting import ExportReport, export_catalog
from headrace_client.arrow.faults import FileFault, ImportStopped
from headrace_client.arrow.importing import ImportProgress, ImportReport, import_catalog

__all__ = [
    "ExportReport",
    "FileFault",
    "ImportProgress",
    "ImportReport",
    "ImportStopped",
    "export_catalog",
    "import_catalog",
]
