"""Each claim of speed or safety, measured in one run beside what a user would pick instead."""
