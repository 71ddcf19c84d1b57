"""The HTTP routes. They translate requests and answers; the rules are in the rooms below."""
