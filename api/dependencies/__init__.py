"""FastAPI dependencies of the routes: the caller, rate limits, and transactions in the caller's context."""
