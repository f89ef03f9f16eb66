"""The bundled sample data: a room for each subject, with its generators and their tables."""
