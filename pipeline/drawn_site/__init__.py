"""The demo site: invented listings, drawn photos, planned faults, and what a crawl of it must find."""
