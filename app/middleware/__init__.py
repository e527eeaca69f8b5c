"""Middleware, each as one pure ASGI class (https://asgi.readthedocs.io/)."""
