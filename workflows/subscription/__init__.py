"""The subscription entity workflow and its parts."""
