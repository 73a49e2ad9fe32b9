"""What ratings files look like and how they are read: delimited text and parquet, packed or not."""
