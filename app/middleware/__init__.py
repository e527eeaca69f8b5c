"""The middleware. Each module contains one pure ASGI class (https://asgi.readthedocs.io/)."""
