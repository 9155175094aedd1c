"""Being a guest on the web: which hosts may be asked, at what pace, under which rules, and how answers arrive."""
