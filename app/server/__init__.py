"""What runs the application rather than is it: logging, the worker process, the count of CPUs."""
