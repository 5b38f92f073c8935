"""Tar shards that another program wrote: scanned and indexed."""
