"""The API server: requests and answers of OpenAI's protocol, engine threads, the HTTP side."""
