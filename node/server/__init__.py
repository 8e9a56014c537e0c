"""The HTTP and WebSocket faces of a node."""
