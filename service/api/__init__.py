"""The HTTP and gRPC routes. They translate requests and answers; other packages make decisions."""
