"""What api_conformance.py asks of a server, and how."""
