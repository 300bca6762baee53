"""The studio: a web page to brush masks and compare methods, and its HTTP API."""
