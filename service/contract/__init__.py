"""What training promises and the service relies on. Standard library, NumPy and pydantic only."""
