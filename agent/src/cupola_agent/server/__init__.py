"""The library's own server: HTTP/1.1 and WebSocket on asyncio, one process, one loop."""
