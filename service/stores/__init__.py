"""Models from object stores: a bounded local copy of a bucket or a web folder, kept in step."""
