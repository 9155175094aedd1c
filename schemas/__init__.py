"""The contract of Forecourt on disk and on the wire: tables, settings, images, shards, receipts."""
