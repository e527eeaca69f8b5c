"""What happens to every request, each in one pure ASGI class (https://asgi.readthedocs.io/)."""
