"""In: what scoring found. Out: Arrow tables with documented schemas, complete Parquet files, saved arrays and the manifest."""
