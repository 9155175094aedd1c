"""Reading a listing from a page: its text, its data, its photos, and values as the columns want them."""
