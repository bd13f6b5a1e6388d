"""Requests that cost a client little and a server much, sent to a real server and a real daemon on loopback."""
