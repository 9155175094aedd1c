"""From the web to a published data set: crawl, deduplicate, query, verify."""
