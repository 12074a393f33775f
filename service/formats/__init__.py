"""The formats of the files that users bring: JSON Lines, JSON arrays, CSV and Parquet, each also packed by gzip or zstd.

`source.Source` opens a file; the others each know one thing. Nothing here knows what a row means.
"""
